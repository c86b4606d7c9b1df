"""Retries a call after a failed allocation, without the gradients that it had added."""

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
    """Runs work on the planned rows; retries with smaller rows if memory runs out, then raises 507.

    Returns the cut that succeeded. Gradients of a failed attempt are dropped; earlier ones stay.
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
            # Ranks that run rows together cannot recut them alone.
            if policy.sharding.size > 1 or not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("rows of %d tokens: out of memory: %s", current.cut.row_tokens, reason)
        # Outside the handler, so that the traceback no longer holds the attempt's tensors.
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
        if not last:
            current = recut(chosen.cut.careful(checkpointing=policy.can_checkpoint))
    raise CommandError(
        507,
        "OutOfMemory",
        f"an allocation failed ({reason}), again with rows of {current.cut.row_tokens} tokens"
        f"{' and activation checkpointing' if current.cut.checkpointing else ''}; "
        f"{chosen.needed / GIB:.3g} GiB were predicted; nothing of this "
        "call was accumulated",
        "send smaller batches, lower sampling.maxTokens, or give the trainer more memory "
        "(spec.trainer.template)",
    )


@contextmanager
def checkpointing(policy: Policy, *, on: bool) -> Iterator[None]:
    """Inside, decoder layers keep only their input, if ``on``."""
    before, policy.checkpointing = policy.checkpointing, on
    try:
        with mapping_blocks() if on and policy.device.type == "cpu" else nullcontext():
            yield
    finally:
        policy.checkpointing = before


@contextmanager
def _accumulated_apart(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Gradients added inside join those from before only if all of it succeeds."""
    before = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        yield
    except BaseException:
        for name, parameter in parameters.items():
            parameter.grad = before[name]
        raise
    for name, parameter in parameters.items():
        earlier = before[name]
        if earlier is not None:
            parameter.grad = earlier if parameter.grad is None else earlier.add_(parameter.grad)
