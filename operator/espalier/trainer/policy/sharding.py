"""The placement of weights: whole on this rank, or a part of each on every rank (FSDP2).

Parts are taken along the first dimension, in rank order, as torch.chunk cuts. Weights come together
for the forward and backward pass of one decoder layer at a time, which every rank enters: so all
ranks run the same number of rows, and agree before each backward pass.
Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from typing_extensions import override

from espalier.trainer.policy.frozen_lm_head import Evaluated
from espalier.trainer.problems import CommandError

_NO_GRAD, _WITH_GRAD, _FAILED = range(3)


class OtherRankFailedError(Exception):
    """Another rank failed and has the reason; this rank did its part."""


class Whole:
    """All weights are on this rank, which waits for no other."""

    size = 1

    def run(self, evaluate: Callable[[], Evaluated]) -> Evaluated:
        """Runs a forward pass."""
        return evaluate()

    def longest(self, count: int) -> int:
        """The largest count of any rank."""
        return count

    def agree(self, failure: CommandError | None, *, with_grad: bool) -> bool:
        """Whether any rank has a gradient; raises this rank's failure or OtherRankFailedError."""
        if failure is not None:
            raise failure
        return with_grad

    def total(self, values: Tensor) -> Tensor:
        """Sums over ranks, the same on each."""
        return values

    def own(self, tensor: Tensor) -> Tensor:
        """This rank's part of a parameter or its gradient; shares its memory."""
        return tensor

    def rows(self, count: int) -> slice:
        """This rank's rows among a parameter's ``count``."""
        return slice(0, count)

    def gather(self, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Joins every rank's part of a tensor; only rank 0's result is whole."""
        return own

    def gathered_bytes(self) -> int:
        """Bytes gathered beside the parts: the ends of the model and two layers."""
        return 0


class Shards(Whole):
    """A part of every weight of ``causal_lm``, which moves to ``device`` layer by layer."""

    def __init__(self, causal_lm: Any, device: torch.device) -> None:
        self.size = dist.get_world_size()
        self._rank = dist.get_rank()
        self._device = device
        layers = list(getattr(causal_lm.get_decoder(), "layers", []))
        inner = max((_bytes(layer) for layer in layers), default=0)
        ends = _bytes(causal_lm) - sum(_bytes(layer) for layer in layers)
        self._gathered = 2 * (2 * inner + ends)
        self._root = _Root(causal_lm)
        mesh = init_device_mesh(device.type, (self.size,))
        for module in [*layers, self._root]:
            # The root too: weights that stay gathered would be stale after a step.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                # Gradients are summed and never averaged, whatever the number of ranks.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    @override
    def run(self, evaluate: Callable[[], Evaluated]) -> Evaluated:
        logprobs, entropy = self._root(evaluate)
        return Evaluated(logprobs, entropy)

    @override
    def longest(self, count: int) -> int:
        return int(self._reduced(torch.tensor(count), dist.ReduceOp.MAX))

    @override
    def agree(self, failure: CommandError | None, *, with_grad: bool) -> bool:
        own = _FAILED if failure is not None else _WITH_GRAD if with_grad else _NO_GRAD
        worst = int(self._reduced(torch.tensor(own), dist.ReduceOp.MAX))
        if failure is not None:
            raise failure
        if worst == _FAILED:
            raise OtherRankFailedError("another rank failed")
        return worst == _WITH_GRAD

    @override
    def total(self, values: Tensor) -> Tensor:
        return self._reduced(values, dist.ReduceOp.SUM)

    @override
    def own(self, tensor: Tensor) -> Tensor:
        return cast(DTensor, tensor).to_local()

    @override
    def rows(self, count: int) -> slice:
        part = -(-count // self.size)
        return slice(min(count, self._rank * part), min(count, (self._rank + 1) * part))

    @override
    def gather(self, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        padded = own.new_zeros(-(-shape[0] // self.size), *shape[1:])
        padded[: len(own)] = own
        into = [torch.empty_like(padded) for _ in range(self.size)] if self._rank == 0 else None
        dist.gather(padded, into)
        return own if into is None else torch.cat(into)[: shape[0]]

    @override
    def gathered_bytes(self) -> int:
        return self._gathered

    def _reduced(self, value: Tensor, operation: Any) -> Tensor:
        here = value.to(self._device)
        dist.all_reduce(here, operation)
        return here.cpu()


class _Root(nn.Module):
    """Runs trunk and head in one forward pass, which FSDP hooks into."""

    def __init__(self, causal_lm: nn.Module) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    @override
    def forward(self, evaluate: Callable[[], Evaluated]) -> tuple[Tensor, Tensor]:
        made = evaluate()
        # A tuple, because FSDP finds no tensors in a dataclass; no view, because of its hooks.
        return made.logprobs.clone(), made.entropy


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.itemsize for value in module.parameters())
