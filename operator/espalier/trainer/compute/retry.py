"""Retries a call once after a failed allocation, with smaller rows and checkpointing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from espalier.trainer.batch.packing import Rows
from espalier.trainer.memory.allocator import mapping_blocks
from espalier.trainer.memory.planner import GIB, Cut, Plan
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError

T = TypeVar("T")

logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "can't allocate memory" in text
    )


def attempt(
    policy: Policy, chosen: Plan, recut: Callable[[Cut], Plan], work: Callable[[Rows], T]
) -> tuple[T, Cut]:
    """Runs ``work`` on the planned rows; retries once with a more careful cut, then raises 507.

    Returns the result and the cut that succeeded. Gradients that a failed attempt added are
    dropped, earlier ones stay.
    """
    current = chosen
    for last in (False, True):
        try:
            with (
                _accumulated_apart(policy.parameters),
                checkpointing(policy, on=current.cut.checkpointing),
            ):
                return work(current.rows), current.cut
        except (MemoryError, RuntimeError) as error:
            # Ranks that run rows together cannot each cut them again on their own.
            if policy.sharding.size > 1 or not is_out_of_memory(error):
                raise
            fault = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("rows of %d tokens: out of memory: %s", current.cut.row_tokens, fault)
        # Outside the handler: there the traceback still holds the attempt's tensors.
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
        if not last:
            current = recut(chosen.cut.careful(checkpointing=policy.can_checkpoint))
    raise CommandError(
        507,
        "OutOfMemory",
        f"an allocation failed ({fault}), again with rows of {current.cut.row_tokens} tokens"
        f"{' and activation checkpointing' if current.cut.checkpointing else ''}; "
        f"{chosen.needed / GIB:.3g} GiB were predicted; nothing of this "
        "call was accumulated",
        "send smaller batches, lower sampling.maxTokens, or give the trainer more memory "
        "(spec.trainer.template)",
    )


@contextmanager
def checkpointing(policy: Policy, *, on: bool) -> Iterator[None]:
    """Turns activation checkpointing on or off inside, and restores it afterwards."""
    before, policy.checkpointing = policy.checkpointing, on
    try:
        with mapping_blocks() if on and policy.device.type == "cpu" else nullcontext():
            yield
    finally:
        policy.checkpointing = before


@contextmanager
def _accumulated_apart(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Adds the gradients from inside to the earlier ones, or drops them on an error."""
    earlier = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        yield
    except BaseException:
        for name, parameter in parameters.items():
            parameter.grad = earlier[name]
        raise
    for name, parameter in parameters.items():
        sum_so_far = earlier[name]
        if sum_so_far is not None:
            added = parameter.grad
            parameter.grad = sum_so_far if added is None else sum_so_far.add_(added)
