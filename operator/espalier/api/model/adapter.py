"""The trained part of a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel


def _of_lora(schema: dict[str, Any]) -> None:
    """Leaves a default to the code, so that a rule can tell a field that was set."""
    del schema["default"]


def _modules_of_lora(schema: dict[str, Any]) -> None:
    _of_lora(schema)
    schema["x-kubernetes-list-type"] = "atomic"


class Adapter(Type):
    """The trained part of the model."""

    type: Literal["LoRA", "Full"] = Field(
        default="LoRA",
        description="type LoRA trains small matrices beside a frozen base. Full trains every "
        "weight of the base: it takes 32 bytes of memory and 12 bytes of storage per checkpoint "
        "for each, needs trainer.dtype float32, and is served one checkpoint at a time.",
    )
    rank: int = Field(
        default=16,
        ge=1,
        le=256,
        description="rank of the LoRA matrices; 16 if unset.",
        json_schema_extra=_of_lora,
    )
    alpha: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="alpha scales the update of LoRA by alpha / rank; 32 if unset.",
        json_schema_extra=_of_lora,
    )
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default=["all-linear"],
        description="targetModules of LoRA are names of linear layers, or all-linear (if unset) "
        "for every one but the head.",
        min_length=1,
        max_length=32,
        json_schema_extra=_modules_of_lora,
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="seed of the initial LoRA weights; 0 if unset.",
        json_schema_extra=_of_lora,
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.type == 'LoRA' || !(has(self.rank) || has(self.alpha)"
                " || has(self.targetModules) || has(self.seed))",
                "rank, alpha, targetModules and seed belong to LoRA: remove them or choose it",
            )
        )
    )

    @property
    def lora_rank(self) -> int:
        """The rank, or 0 in full fine-tuning."""
        return self.rank if self.type == "LoRA" else 0
