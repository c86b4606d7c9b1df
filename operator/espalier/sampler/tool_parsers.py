"""Chooses vLLM's parsers for a base by its family and by the form in its chat template.

One family writes tool calls in several forms (Qwen3 as JSON, Qwen3-Coder as XML), so the family
alone does not decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.sampler.settings import SamplerSettings

# Beginning of config.json's model_type, text that the chat template must hold, the parser. The
# first that fits counts. docs/guides/parsers.md has the same table
# (tests/sampler/test_tool_parsers.py).
TOOL_CALL_FAMILIES = (
    ("qwen", "<function=", "qwen3_coder"),
    ("qwen", "<tool_call>", "hermes"),
    ("smollm3", "<tool_call>", "hermes"),
    ("llama", "<tool_call>", "hermes"),
    ("llama", "ipython", "llama3_json"),
    ("mistral", "[TOOL_CALLS]", "mistral"),
)
REASONING_FAMILIES = (
    ("qwen3", "enable_thinking", "qwen3"),
    ("qwen3", "<|im_start|>assistant\\n<think>", "qwen3"),
    ("qwen2", "<｜Assistant｜><think>", "deepseek_r1"),
    ("llama", "<｜Assistant｜><think>", "deepseek_r1"),
)


@dataclass(frozen=True)
class Parsers:
    """Names of vLLM's parsers; None where there is none."""

    tool_call: str | None = None
    reasoning: str | None = None

    def arguments(self) -> list[str]:
        """vLLM's flags."""
        tools = ["--enable-auto-tool-choice", "--tool-call-parser", self.tool_call or ""]
        reasoning = ["--reasoning-parser", self.reasoning or ""]
        return [*(tools if self.tool_call else []), *(reasoning if self.reasoning else [])]


def chosen(settings: SamplerSettings, config: Mapping[str, Any], template: str) -> Parsers:
    """What the settings say, or for Auto what fits the base.

    Args:
        settings: of the pod.
        config: the base's config.json.
        template: its chat template; empty if it has none.
    """
    family = str(config.get("model_type", ""))
    return Parsers(
        _named(settings.tool_call_parser, TOOL_CALL_FAMILIES, family, template),
        _named(settings.reasoning_parser, REASONING_FAMILIES, family, template),
    )


def misfit(settings: SamplerSettings) -> tuple[str, str] | None:
    """The field that names a parser which cannot work on this base, and vLLM's words; None if none.

    vLLM makes new parsers for every chat, and each would fail: most look for tokens that their
    family's tokenizer has, a few for a package. Those that are chosen by family are not tried.
    """
    # Imported here because they take seconds, and the choice by family does not need them.
    from vllm.parser import ParserManager  # noqa: PLC0415
    from vllm.tokenizers import get_tokenizer  # noqa: PLC0415

    named = [
        ("spec.rollout.toolCallParser", "tool_parser_name", settings.tool_call_parser),
        ("spec.rollout.reasoningParser", "reasoning_parser_name", settings.reasoning_parser),
    ]
    for field, argument, parser in named:
        if parser in ("Auto", "None"):
            continue
        try:
            made: Any = ParserManager.get_parser(**{argument: parser}, enable_auto_tools=True)
            made(get_tokenizer(str(settings.base_directory)), None, chat_template_kwargs={})
        except Exception as error:
            return field, f"{field} is {parser}: {error}"
    return None


def _named(
    wanted: str, families: tuple[tuple[str, str, str], ...], family: str, template: str
) -> str | None:
    if wanted != "Auto":
        return None if wanted == "None" else wanted
    fitting = (
        parser
        for beginning, text, parser in families
        if family.startswith(beginning) and text in template
    )
    return next(fitting, None)


def chat_template(base: Path) -> str:
    """The default chat template among a base's files; empty if it has none."""
    separate = base / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    tokenizer = base / "tokenizer_config.json"
    if not tokenizer.is_file():
        return ""
    found = json.loads(tokenizer.read_bytes()).get("chat_template") or ""
    if isinstance(found, str):
        return found
    named = {entry.get("name"): entry.get("template", "") for entry in found}
    return str(named.get("default", ""))
