"""A linear layer with its LoRA in one step of autograd: y = x W' + bias + s (x A') B'.

PEFT's own forward adds the update in three passes over the output (times s, plus y, and their
backward). Here it is added into the product in place, and its gradient into the gradient of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override


class FusedLinear(LoraLinear):  # type: ignore[misc]
    """PEFT's layer with a fused forward; ``fuse`` turns fusible layers into it."""

    @override
    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """[..., O] from ``x`` [..., I]; by PEFT's own code unless one adapter is active."""
        alone = len(self.active_adapters) == 1 and not self.disable_adapters and not self.merged
        if others or named or not alone or torch.is_autocast_enabled(x.device.type):
            plain: Tensor = super().forward(x, *others, **named)
            return plain
        (adapter,) = self.active_adapters
        base, a, b = self.base_layer, self.lora_A[adapter].weight, self.lora_B[adapter].weight
        fused: Tensor = _LinearWithUpdate.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, a, b, self.scaling[adapter]
        )
        return fused


def fusible(model: nn.Module) -> list[LoraLinear]:
    """The LoRA layers of a model that the fused forward is exact for.

    Their base is a frozen plain linear layer of the adapter's own dtype, because rounding between
    types is PEFT's. Dropout, an adapter bias and variants such as DoRA exclude a layer.
    """
    layers: list[Any] = [module for module in model.modules() if type(module) is LoraLinear]
    return [layer for layer in layers if all(_fits(layer, name) for name in layer.lora_A)]


def fuse(layers: Sequence[LoraLinear], *, fused: bool) -> None:
    """Switches fusible layers to the fused forward, or back to PEFT's own."""
    for layer in layers:
        layer.__class__ = FusedLinear if fused else LoraLinear


def _fits(layer: LoraLinear, adapter: str) -> bool:
    base, a, b = layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter]
    return (
        type(base) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and base.weight.dtype == a.weight.dtype == b.weight.dtype
        and a.bias is None
        and b.bias is None
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and adapter not in layer.lora_variant
        and not layer.fan_in_fan_out
    )


class _LinearWithUpdate(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        inner = flat @ a.T
        result = nn.functional.linear(flat, weight, bias).addmm_(inner, b.T, alpha=s)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = s
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *upstream: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, a, b, inner = ctx.saved_tensors
        above = upstream[0].reshape(-1, weight.shape[0])
        inner_above = (above @ b).mul_(ctx.scaling)
        of_a = inner_above.T @ x.reshape(-1, x.shape[-1])
        of_b = (above.T @ inner).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (above @ weight).addmm_(inner_above, a).view_as(x)
        return of_x, None, None, of_a, of_b, None
