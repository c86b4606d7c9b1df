"""How a model is served."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import Type
from espalier.api.parsers import ReasoningParser, ToolCallParser
from espalier.api.podtemplate import PodTemplate


class RolloutSpec(Type):
    """How the model is served."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=64,
        description="replicas of the vLLM server; 0 frees them. The scale subresource writes it: "
        "leave it out of Git where an autoscaler does.",
    )
    max_model_tokens: int = Field(
        default=1024,
        ge=16,
        le=1048576,
        description="maxModelTokens bounds prompt plus completion.",
    )
    max_adapters: int = Field(
        default=4,
        ge=1,
        le=64,
        description="maxAdapters are loaded side by side on a server; with adapter.type Full it "
        "is one checkpoint's weights, whatever this says.",
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None, description="dtype of the served base; spec.trainer.dtype if unset."
    )
    startup_seconds: int = Field(
        default=1800,
        ge=60,
        le=86400,
        description="startupSeconds that a pod may take to load the base before it is started "
        "anew: 140 GB at 200 MB/s take 700 s.",
    )
    tool_call_parser: ToolCallParser = Field(
        default="Auto",
        description="toolCallParser of vLLM turns the text of a tool call into tool_calls. Auto "
        "chooses by the base's family and chat template, as docs/guides/parsers.md lists; where it "
        "finds none, or with None, a request with tools is refused.",
    )
    reasoning_parser: ReasoningParser = Field(
        default="Auto",
        description="reasoningParser of vLLM takes what the model thinks out of content, into "
        "reasoning_content. Auto chooses as for toolCallParser; where it finds none, or with "
        "None, thoughts stay in content.",
    )
    template: PodTemplate | None = Field(default=None, description="template of the rollout pods.")
