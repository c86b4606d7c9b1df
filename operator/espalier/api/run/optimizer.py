"""The optimizer of a run, and its settings on the wire."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import NonNegativeDecimal, PositiveDecimal, Type, UnitDecimal, decimal

# Fields of Optimizer that HUD's wire calls otherwise.
_OPTIMIZER_ON_WIRE = {"epsilon": "eps", "gradient_clip_norm": "grad_clip_norm"}


class Optimizer(Type):
    """AdamW; every value is applied at each step."""

    beta1: UnitDecimal = Field(default="0.9", description='beta1 of AdamW, for example "0.9".')
    beta2: UnitDecimal = Field(default="0.95", description='beta2 of AdamW, for example "0.95".')
    epsilon: PositiveDecimal = Field(
        default="1e-8", description='epsilon of AdamW, for example "1e-8".'
    )
    weight_decay: NonNegativeDecimal = Field(
        default="0", description='weightDecay, decoupled, for example "0".'
    )
    gradient_clip_norm: NonNegativeDecimal = Field(
        default="0", description='gradientClipNorm bounds the global norm; "0" is off.'
    )

    def config(self) -> dict[str, float]:
        """The optimizer's fields of the wire's optim-step, by their names there."""
        return {
            _OPTIMIZER_ON_WIRE.get(name, name): decimal(getattr(self, name))
            for name in type(self).model_fields
        }
