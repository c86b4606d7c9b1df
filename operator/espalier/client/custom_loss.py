"""The gradient of a loss that the caller computes, by the caller's own torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from espalier.api.wire.gradients import DatumTensors
from espalier.client.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

D = TypeVar("D", bound=DatumTensors)
# (data, log-probs of each datum (T,)) -> (loss, metrics)
LossOf = Callable[[list[D], "list[torch.Tensor]"], "tuple[torch.Tensor, dict[str, float]]"]
CustomLoss = LossOf[DatumTensors]


async def weights_of(
    loss_fn: LossOf[D], data: Sequence[D]
) -> tuple[list[list[float]], dict[str, float]]:
    """``-dLoss/dlogprob`` per datum and token, and the loss's metrics.

    Raises:
        ConfigurationError: torch is not installed.
        ValueError: the loss is no scalar, or does not depend on the log-probs.
    """
    return await asyncio.to_thread(_differentiate, loss_fn, list(data))


def _differentiate(loss_fn: LossOf[D], data: list[D]) -> tuple[list[list[float]], dict[str, float]]:
    try:
        import torch  # noqa: PLC0415 - only custom losses need it
    except ImportError as error:
        raise ConfigurationError(
            "forward_backward_custom differentiates your loss with torch: install torch, or use "
            "forward and backward with weights of your own"
        ) from error
    logprobs = [torch.tensor(datum.logprobs, requires_grad=True) for datum in data]
    loss, metrics = loss_fn(data, logprobs)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(
            "loss_fn must return (loss, metrics) with a loss of one element that depends on the "
            f"log-probs it was given, not {_shown(loss)}"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    # A datum that the loss does not read has no gradient; it weighs nothing.
    weights = [
        [0.0] * len(datum.logprobs) if leaf.grad is None else (-leaf.grad).tolist()
        for datum, leaf in zip(data, logprobs, strict=True)
    ]
    return weights, {name: float(value) for name, value in metrics.items()}


def _shown(loss: Any) -> str:
    shape = getattr(loss, "shape", None)
    return f"a {type(loss).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
