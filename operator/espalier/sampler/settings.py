"""The sampler's settings, from the environment variables that the operator sets on its pod."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SkipValidation
from pydantic_settings import NoDecode

from espalier.api.parsers import ReasoningParser, ToolCallParser
from espalier.core import names
from espalier.core.volume import base_directory, is_digest
from espalier.environment import EnvironmentSettings, Port, Text
from espalier.identity import PUBLIC_KEYS, TrustedKeys
from espalier.key_file import trusted

# The ranks that vLLM sizes its adapter slots for (vllm.config.lora.MaxLoRARanks, up to CRD's 256).
SLOT_RANKS = (8, 16, 32, 64, 128, 256)


def _digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError(f"{text!r} is not sha256:<64 hex digits>")
    return text


class SamplerSettings(EnvironmentSettings):
    """The pod contract of docs/developing/architecture.md. Lengths in tokens."""

    model: Text = Field(validation_alias="ESPALIER_MODEL", description="the model's name")
    namespace: Text = Field(
        validation_alias="ESPALIER_NAMESPACE", description="the model's namespace"
    )
    uid: Text = Field(validation_alias=names.POD_UID, description="the pod's own UID")
    volume: Path = Field(
        validation_alias="ESPALIER_VOLUME", description="where the model's volume is mounted"
    )
    base: Annotated[str, AfterValidator(_digest)] = Field(
        validation_alias="ESPALIER_BASE", description="the base's digest"
    )
    public_keys: Annotated[SkipValidation[TrustedKeys], NoDecode, BeforeValidator(trusted)] = Field(
        validation_alias=PUBLIC_KEYS,
        description="the public keys of operator and gateway, or the file that holds them",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        validation_alias="ESPALIER_DTYPE", description="float32 or bfloat16"
    )
    max_model_tokens: int = Field(
        ge=1,
        le=1_000_000,
        validation_alias="ESPALIER_MAX_MODEL_TOKENS",
        description="the tokens of the longest sequence, 1 to 1000000",
    )
    max_adapters: int = Field(
        ge=1,
        le=1024,
        validation_alias="ESPALIER_MAX_ADAPTERS",
        description="how many adapters to serve at once, 1 to 1024",
    )
    max_lora_rank: int = Field(
        ge=1,
        le=SLOT_RANKS[-1],
        validation_alias="ESPALIER_MAX_LORA_RANK",
        description=f"the highest rank of an adapter, 1 to {SLOT_RANKS[-1]}",
    )
    adapter_type: Literal["LoRA", "Full"] = Field(
        "LoRA", validation_alias="ESPALIER_ADAPTER_TYPE", description="LoRA or Full"
    )
    tool_call_parser: ToolCallParser = Field(
        "Auto",
        validation_alias="ESPALIER_TOOL_CALL_PARSER",
        description="a parser's name, Auto or None",
    )
    reasoning_parser: ReasoningParser = Field(
        "Auto",
        validation_alias="ESPALIER_REASONING_PARSER",
        description="a parser's name, Auto or None",
    )
    port: Port = Field(8000, validation_alias="ESPALIER_PORT", description="a port, 1 to 65535")
    host: str = Field(
        "0.0.0.0", validation_alias="ESPALIER_HOST", description="the address to listen on"
    )

    @property
    def audience(self) -> str:
        """The audience of the tokens that this pod accepts."""
        return names.audience(self.namespace, self.model, "rollout", self.uid)

    @property
    def base_directory(self) -> Path:
        """Where the base's files lie on the volume."""
        return base_directory(self.volume, self.base)

    @property
    def slot_rank(self) -> int:
        """The smallest rank that vLLM can size its slots for and that holds ``max_lora_rank``."""
        return next(rank for rank in SLOT_RANKS if rank >= self.max_lora_rank)
