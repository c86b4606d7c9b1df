"""How a run samples completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from espalier.api.meta import PositiveDecimal, Type


class Sampling(Type):
    """How completions are sampled."""

    temperature: PositiveDecimal = Field(
        default="1.0", description='temperature above 0, a quoted decimal such as "1.0".'
    )
    max_tokens: int = Field(
        default=256, ge=1, le=131072, description="maxTokens of one completion."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(
        default=None,
        description="stop holds strings that end a completion beside the tokenizer's "
        "end-of-sequence token; their tokens are trained on, their text is not scored.",
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(
        default=None,
        description="stopTokenIds are tokens that end a completion as well, for a base whose chat "
        "template closes turns with another token than the tokenizer's end of sequence.",
        min_length=1,
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description="chatTemplateKwargs go to the base's chat template, such as "
        "enable_thinking: false for Qwen3. A name that the template does not use ends the run.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "maxProperties": 32},
    )

    def request(self) -> dict[str, Any]:
        """The fields of a chat completion's request but for temperature and ``max_tokens``."""
        fields = {
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "chat_template_kwargs": self.chat_template_kwargs,
        }
        return {name: value for name, value in fields.items() if value is not None}
