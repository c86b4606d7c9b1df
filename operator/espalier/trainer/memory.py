"""Memory: what there is, what a batch needs, and how it is cut so that it fits.

The memory model of ``plan`` is corrected by one measured row at start. What is available is also
read once, so that a batch replayed after a crash is cut as it was the first time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from espalier.trainer import plan
from espalier.trainer.data import Datum
from espalier.trainer.head import CHUNK_ELEMENTS
from espalier.trainer.packing import Row, pack
from espalier.trainer.plan import ModelShape
from espalier.trainer.problems import CommandError, UserMistakeError

if TYPE_CHECKING:
    from espalier.trainer.model import Policy

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Bytes that a batch may take beyond what the loaded model holds; overrides what is measured.
MEMORY_VARIABLE = "ESPALIER_MEMORY_BYTES"
# The rest is for the allocator's fragments and for what else the process does.
USABLE = 0.85
# A row shorter than this gains less from being cut again than checkpointing costs.
SHORTEST_ROW = 64
_CGROUP_LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_GIB = 1 << 30


class TooLargeError(Exception):
    """No way to cut the batch fits: ``needed`` and ``available`` bytes, and the datum."""

    def __init__(self, datum: int, tokens: int, needed: int, available: int) -> None:
        super().__init__(f"datum {datum} of {tokens} tokens needs {needed} of {available} bytes")
        self.datum = datum
        self.tokens = tokens
        self.needed = needed
        self.available = available


@dataclass(frozen=True)
class Plan:
    """A batch cut into rows; ``needed`` is the predicted peak in bytes of the largest."""

    rows: tuple[Row, ...]
    checkpointing: bool
    needed: int


@dataclass(frozen=True)
class Planner:
    """Cuts batches for one model and device. Pure: equal batches are cut alike."""

    shape: ModelShape
    available: int
    chunk_elements: int
    correction: float = 1.0

    def training(self, data: Sequence[Datum], row_tokens: int) -> Plan:
        """Rows of at most ``row_tokens``, shorter where memory needs it; raises TooLargeError.

        Checkpointing costs a forward pass, shorter rows cost little: so rows shrink first.
        """
        for checkpointing in (False, True):
            for budget in _budgets(row_tokens):
                found = self._cut(data, budget, checkpointing=checkpointing)
                if found.needed <= self.available:
                    return found
        raise self._too_large(found)

    def scoring(self, data: Sequence[Datum], row_tokens: int) -> Plan:
        """The same for a forward without gradients."""
        for budget in _budgets(row_tokens):
            found = self._cut(data, budget, checkpointing=None)
            if found.needed <= self.available:
                return found
        raise self._too_large(found)

    def needed(self, row: Row, *, checkpointing: bool | None) -> int:
        """The predicted peak of a row in bytes; ``None``: without gradients."""
        size, chunk = plan.row_size(row), self.chunk_elements
        if checkpointing is None:
            return plan.score_bytes(self.shape, size, chunk_elements=chunk)
        return plan.row_bytes(
            self.shape,
            size,
            chunk_elements=chunk,
            checkpointing=checkpointing,
            correction=self.correction,
        )

    def _cut(self, data: Sequence[Datum], budget: int, *, checkpointing: bool | None) -> Plan:
        rows = pack(data, budget)
        needed = max((self.needed(row, checkpointing=checkpointing) for row in rows), default=0)
        return Plan(tuple(rows), bool(checkpointing), needed)

    def _too_large(self, closest: Plan) -> TooLargeError:
        checkpointing = closest.checkpointing or None
        worst = max(closest.rows, key=lambda row: self.needed(row, checkpointing=checkpointing))
        last = max(worst.spans, key=lambda span: int(worst.depths[worst.reads[span.stop - 1]]))
        tokens = int(worst.depths[worst.reads[last.stop - 1]]) + 2
        return TooLargeError(last.datum, tokens, closest.needed, self.available)


def measure(policy: Policy, environment: Mapping[str, str] = os.environ) -> Planner:
    """The planner of a loaded policy, corrected by what one short row keeps."""
    shape = policy_shape(policy)
    generator = np.random.default_rng(0)
    length = min(64, policy.limits.context // 2)
    tokens = tuple(generator.integers(0, policy.limits.vocabulary, length).tolist())
    (row,) = pack([Datum(tokens, tokens, (), 0.0, 0.0, 0, None)], 2 * length)
    correction = kept_bytes(policy, row) / plan.saved_bytes(shape, plan.row_size(row))
    available = read_available(policy.device, environment, plan.training_bytes(shape))
    logger.info("memory for a batch: %.2f GiB, correction %.2f", available / _GIB, correction)
    chunk = CHUNK_ELEMENTS[policy.device.type]
    return Planner(shape, available, chunk, correction)


def policy_shape(policy: Policy) -> ModelShape:
    """The shape of a policy's base and adapter."""
    causal_lm = policy.causal_lm
    return plan.shape_of(
        causal_lm.config,
        dtype_bytes=causal_lm.get_input_embeddings().weight.dtype.itemsize,
        rank=policy.adapter.rank,
        trained=sum(parameter.numel() for parameter in policy.parameters.values()),
    )


def kept_bytes(policy: Policy, row: Row) -> int:
    """Bytes of the distinct tensors, weights aside, that autograd keeps of a row's forward."""
    held = [*policy.causal_lm.parameters(), *policy.causal_lm.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.evaluate(row, 1.0)
    return sum(
        tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights
    )


def read_available(device: torch.device, environment: Mapping[str, str], reserved: int = 0) -> int:
    """Bytes that a batch may take, after ``reserved`` for the optimizer.

    The override; else what the GPU has free; else the least of what the control group and the
    machine leave, of which a share is kept back.
    """
    given = environment.get(MEMORY_VARIABLE)
    if given is not None:
        if not given.isdecimal() or not int(given):
            raise UserMistakeError(
                "InvalidSettings",
                f"{MEMORY_VARIABLE} is {given!r}",
                "set it to the bytes that a batch may take beyond the loaded model, or unset it",
            )
        return int(given)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = free_host_memory(Path("/sys/fs/cgroup"), Path("/proc/meminfo"))
    return max(0, int(USABLE * free) - reserved)


def free_host_memory(cgroup: Path, meminfo: Path) -> int:
    """Bytes until the control group's limit (version 2 or 1) or the machine's end."""
    free = []
    for limit, usage in _CGROUP_LIMITS:
        if (cgroup / limit).exists():
            given = (cgroup / limit).read_text().strip()
            if given != "max":
                free.append(int(given) - int((cgroup / usage).read_text()))
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    return max(0, min(free))


def too_large(error: TooLargeError, field: str) -> CommandError:
    """413: refused before anything was logged or computed."""
    return CommandError(
        413,
        "BatchTooLarge",
        f"{field} of {error.tokens} tokens needs {error.needed / _GIB:.3g} GiB even alone and with "
        f"activation checkpointing; {error.available / _GIB:.3g} GiB are available",
        "lower sampling.maxTokens, shorten the prompt, or give the trainer more memory "
        "(spec.trainer.template)",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "can't allocate memory" in text
    )


@contextmanager
def accumulated_apart(parameters: Mapping[str, Any]) -> Iterator[None]:
    """What is added to the gradients inside is added to those before only if all of it succeeds."""
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
        held = before[name]
        if held is not None:
            parameter.grad = held if parameter.grad is None else held.add_(parameter.grad)


def twice(attempt: Callable[[bool], T], available: int) -> T:
    """``attempt(False)``; if memory runs out, ``attempt(True)`` which must need less; else 507."""
    for careful in (False, True):
        try:
            return attempt(careful)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory (%s), careful: %s", error, careful)
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise CommandError(
        507,
        "OutOfMemory",
        f"an allocation failed ({said}), again with rows of half the size and activation "
        f"checkpointing; {available / _GIB:.3g} GiB were available at start; nothing of this call "
        "was accumulated",
        "send smaller batches, lower sampling.maxTokens, or give the trainer more memory",
    )


def _budgets(row_tokens: int) -> Iterator[int]:
    """Halves down to the shortest row, then every datum alone."""
    budget = row_tokens
    while budget > SHORTEST_ROW:
        yield budget
        budget //= 2
    yield min(budget, SHORTEST_ROW)
    yield 1
