"""Two collectives over one flat float32 buffer: sum gradients to rank 0, broadcast weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from espalier.trainer.ranks.control import RankLostError
from espalier.trainer.volume.shapes import State


class Collective:
    """Every rank enters each call; the buffer is made once, so no rank fails on the way in."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(sorted(parameters.items()))
        first = next(iter(self._parameters.values()))
        count = sum(p.numel() for p in self._parameters.values())
        self._flat = torch.zeros(count, dtype=torch.float32, device=first.device)

    def sum_gradients(self) -> State:
        """The sums by name, valid until the next call, and only on rank 0.

        The accumulated gradients stay as they are.
        """
        for name, part in self._views().items():
            gradient = self._parameters[name].grad
            if gradient is None:
                part.zero_()
            else:
                part.copy_(gradient)
        self._enter("the sum of gradients", lambda: dist.reduce(self._flat, dst=0))
        return self._views()

    def broadcast(self) -> State:
        """Rank 0's weights by name, valid until the next call."""
        for name, part in self._views().items():
            part.copy_(self._parameters[name].detach())
        self._enter("the broadcast of weights", lambda: dist.broadcast(self._flat, src=0))
        return self._views()

    def digest(self) -> str:
        """The weights' SHA-256: equal on all ranks as long as they train the same policy."""
        hashed = hashlib.sha256()
        for parameter in self._parameters.values():
            hashed.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def _views(self) -> State:
        views, start = {}, 0
        for name, parameter in self._parameters.items():
            views[name] = self._flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return views

    def _enter(self, what: str, collective: Callable[[], Tensor | None]) -> None:
        try:
            collective()
            if self._flat.is_cuda:
                torch.cuda.synchronize()
        except RuntimeError as error:
            raise RankLostError(f"{what} failed: {error}") from error
