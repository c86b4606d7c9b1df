"""Which parsers a base gets, and the refusal of tools where it gets none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from tests.sampler.qwen3 import TEMPLATE, make_model
from tests.sampler.test_settings import GOOD

from espalier.api.parsers import ReasoningParser, ToolCallParser
from espalier.environment import SettingsError
from espalier.sampler import tool_parsers
from espalier.sampler.chat_checks import leave_free, refusal
from espalier.sampler.settings import SamplerSettings
from espalier.sampler.tool_parsers import Parsers, chosen

QWEN3 = TEMPLATE.read_text()


def test_the_names_are_those_of_the_pinned_vllm() -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    assert [*get_args(ToolCallParser)[2:]] == ToolParserManager.list_registered()
    assert [*get_args(ReasoningParser)[2:]] == ReasoningParserManager.list_registered()


@pytest.mark.parametrize(
    ("family", "template", "expected"),
    [
        ("qwen3", QWEN3, Parsers("hermes", "qwen3")),
        ("qwen2", "... <tool_call> ...", Parsers("hermes", None)),
        ("qwen3_moe", "<tool_call>\n<function=f>", Parsers("qwen3_coder", None)),
        ("qwen2", "<｜Assistant｜><think>", Parsers(None, "deepseek_r1")),
        ("llama", "Environment: ipython", Parsers("llama3_json", None)),
        ("llama", "<|user|>", Parsers()),
        ("gpt2", "<tool_call>", Parsers()),
        ("qwen3", "", Parsers()),
    ],
)
def test_auto_goes_by_family_and_template(family: str, template: str, expected: Parsers) -> None:
    assert chosen(SamplerSettings.read(GOOD), {"model_type": family}, template) == expected


def test_what_the_spec_says_goes_before_the_family() -> None:
    told = {"ESPALIER_TOOL_CALL_PARSER": "pythonic", "ESPALIER_REASONING_PARSER": "None"}
    found = chosen(SamplerSettings.read(GOOD | told), {"model_type": "qwen3"}, QWEN3)
    assert found == Parsers("pythonic", None)
    assert found.arguments() == ["--enable-auto-tool-choice", "--tool-call-parser", "pythonic"]


def test_an_unknown_parser_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match=r"ESPALIER_TOOL_CALL_PARSER.*'nope'.*hermes"):
        SamplerSettings.read(GOOD | {"ESPALIER_TOOL_CALL_PARSER": "nope"})


@pytest.mark.parametrize(
    ("tools", "thoughts", "field"),
    [
        ("hermes", "qwen3", None),
        ("Auto", "None", None),
        ("deepseek_v3", "qwen3", "spec.rollout.toolCallParser"),
        ("hermes", "mistral", "spec.rollout.reasoningParser"),
        # It needs a package that is not there.
        ("cohere_command4", "None", "spec.rollout.toolCallParser"),
    ],
)
def test_a_parser_that_cannot_work_on_the_tokenizer_is_named(
    tmp_path: Path, tools: str, thoughts: str, field: str | None
) -> None:
    told = {"ESPALIER_TOOL_CALL_PARSER": tools, "ESPALIER_REASONING_PARSER": thoughts}
    settings = SamplerSettings.read(GOOD | told | {"ESPALIER_VOLUME": str(tmp_path)})
    make_model(settings.base_directory)
    found = tool_parsers.misfit(settings)
    assert (found and found[0]) == field


@pytest.mark.parametrize("template", ["{{ a }}", [{"name": "default", "template": "{{ a }}"}]])
def test_the_template_is_found_wherever_tokenizers_keep_it(tmp_path: Path, template: Any) -> None:
    assert tool_parsers.chat_template(tmp_path) == ""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert tool_parsers.chat_template(tmp_path) == "{{ a }}"
    (tmp_path / "chat_template.jinja").write_text("{{ b }}")
    assert tool_parsers.chat_template(tmp_path) == "{{ b }}"


def asked(**fields: Any) -> Any:
    unset = {
        "tools": None,
        "tool_choice": None,
        "chat_template_kwargs": None,
        "documents": None,
        "reasoning_effort": None,
        "include_reasoning": True,
        "return_token_ids": True,
        "logprobs": True,
    }
    return SimpleNamespace(**(unset | fields))


@pytest.mark.parametrize("choice", ["auto", "required", SimpleNamespace(function="f")])
def test_tools_without_a_parser_are_refused_naming_the_field(choice: Any) -> None:
    request = asked(tools=[{}], tool_choice=choice)
    field, message = refusal(request, set(), calls_tools=False, thinks=False) or ("", "")
    assert field == "tools"
    assert "spec.rollout.toolCallParser" in message
    assert refusal(request, set(), calls_tools=True, thinks=False) is None


@pytest.mark.parametrize(
    ("effort", "variables", "refused"),
    [
        ("high", {"reasoning_effort"}, False),
        ("high", {"enable_thinking"}, True),
        ("none", {"enable_thinking"}, False),
        ("none", set(), True),
        (None, set(), False),
    ],
)
def test_an_effort_that_the_template_cannot_tell_is_refused(
    effort: str | None, variables: set[str], refused: bool
) -> None:
    request = asked(reasoning_effort=effort)
    found = refusal(request, variables, calls_tools=False, thinks=True)
    assert (found is not None) == refused


def test_tools_that_are_not_to_be_called_need_no_parser() -> None:
    request = asked(tools=[{}], tool_choice="none")
    assert refusal(request, set(), calls_tools=False, thinks=False) is None


def test_the_documents_have_the_same_tables() -> None:
    table = (Path(__file__).parents[2] / "docs" / "guides" / "parsers.md").read_text()
    for beginning, text, parser in tool_parsers.TOOL_CALL_FAMILIES:
        assert f"| `{beginning}` | `{text}` | `{parser}` |" in table
    for _, _, parser in tool_parsers.REASONING_FAMILIES:
        assert f"| `{parser}` |" in table


def test_a_model_that_may_call_tools_is_bound_to_no_grammar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.abstract_parser import DelegatingParser
    from vllm.tool_parsers import ToolParserManager

    parser = ToolParserManager.get_tool_parser("glm47")
    # Restored afterwards.
    monkeypatch.setattr(parser, "default_tool_strict_level", parser.default_tool_strict_level)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

    def grammar() -> Any:
        request = ChatCompletionRequest(messages=[], tools=[tool], tool_choice="auto")
        part = SimpleNamespace(_tool_parser=parser.__new__(parser), tool_strict_level=0)
        tagged = DelegatingParser._apply_structural_tag(part, request)  # type: ignore[arg-type]
        return tagged.structured_outputs

    assert grammar() is not None
    leave_free(parser)
    assert grammar() is None
