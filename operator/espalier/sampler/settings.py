"""What a rollout pod is told by its environment, checked once at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from espalier.api.parsers import ReasoningParser, ToolCallParser
from espalier.core import names
from espalier.core.volume import directory, is_digest
from espalier.identity import PUBLIC_KEYS, PublicKeys

DTYPES = ("float32", "bfloat16")
ADAPTER_TYPES = ("LoRA", "Full")
TOOL_CALL_PARSERS: tuple[str, ...] = get_args(ToolCallParser)
REASONING_PARSERS: tuple[str, ...] = get_args(ReasoningParser)
# The ranks that vLLM sizes its adapter slots for (vllm.config.lora.MaxLoRARanks, up to CRD's 256).
SLOT_RANKS = (8, 16, 32, 64, 128, 256)


class SettingsError(Exception):
    """A variable of the pod's environment is missing or wrong; the message names it."""


@dataclass(frozen=True)
class Settings:
    """The pod contract of docs/developing/architecture.md. Lengths in tokens."""

    model: str
    namespace: str
    uid: str
    volume: Path
    base: str
    public_keys: PublicKeys
    dtype: str
    max_model_tokens: int
    max_adapters: int
    max_lora_rank: int
    adapter_type: str = "LoRA"
    tool_call_parser: str = "Auto"
    reasoning_parser: str = "Auto"
    port: int = 8000
    host: str = "0.0.0.0"

    @property
    def audience(self) -> str:
        """The audience of the tokens that this pod accepts."""
        return names.audience(self.namespace, self.model, "rollout", self.uid)

    @property
    def base_directory(self) -> Path:
        """Where the base's files lie on the volume."""
        return directory(self.volume, "base", self.base)

    @property
    def slot_rank(self) -> int:
        """The smallest rank that vLLM can size its slots for and that holds ``max_lora_rank``."""
        return next(rank for rank in SLOT_RANKS if rank >= self.max_lora_rank)


def read(environment: Mapping[str, str]) -> Settings:
    """Settings from ``ESPALIER_*`` variables; raises SettingsError."""
    base = _text(environment, "ESPALIER_BASE")
    if not is_digest(base):
        raise SettingsError(f"ESPALIER_BASE must be sha256:<64 hex digits>, not {base!r}")
    dtype = _text(environment, "ESPALIER_DTYPE")
    if dtype not in DTYPES:
        raise SettingsError(f"ESPALIER_DTYPE must be one of {', '.join(DTYPES)}, not {dtype!r}")
    adapter_type = environment.get("ESPALIER_ADAPTER_TYPE", "LoRA")
    if adapter_type not in ADAPTER_TYPES:
        one_of = ", ".join(ADAPTER_TYPES)
        raise SettingsError(f"ESPALIER_ADAPTER_TYPE must be one of {one_of}, not {adapter_type!r}")
    try:
        keys = PublicKeys.read(_text(environment, PUBLIC_KEYS))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return Settings(
        model=_text(environment, "ESPALIER_MODEL"),
        namespace=_text(environment, "ESPALIER_NAMESPACE"),
        uid=_text(environment, names.POD_UID),
        volume=Path(_text(environment, "ESPALIER_VOLUME")),
        base=base,
        public_keys=keys,
        dtype=dtype,
        max_model_tokens=_count(environment, "ESPALIER_MAX_MODEL_TOKENS", 1_000_000),
        max_adapters=_count(environment, "ESPALIER_MAX_ADAPTERS", 1024),
        max_lora_rank=_count(environment, "ESPALIER_MAX_LORA_RANK", SLOT_RANKS[-1]),
        adapter_type=adapter_type,
        tool_call_parser=_parser(environment, "ESPALIER_TOOL_CALL_PARSER", TOOL_CALL_PARSERS),
        reasoning_parser=_parser(environment, "ESPALIER_REASONING_PARSER", REASONING_PARSERS),
        port=_count(environment, "ESPALIER_PORT", 65535)
        if "ESPALIER_PORT" in environment
        else 8000,
        host=environment.get("ESPALIER_HOST", "0.0.0.0"),
    )


def _parser(environment: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = environment.get(name, "Auto")
    if value not in known:
        raise SettingsError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set; the operator sets it on every rollout pod")
    return value


def _count(environment: Mapping[str, str], name: str, most: int) -> int:
    text = _text(environment, name)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise SettingsError(f"{name} must be a whole number from 1 to {most}, not {text!r}")
    return int(text)
