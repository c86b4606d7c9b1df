"""Memory: what there is, what a batch needs, and how it is cut so that it fits.

The memory model of ``plan`` is corrected by one measured row at start. What is available is also
read once, so that a batch replayed after a crash is cut as it was the first time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

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
# Limit, use, and what of the use is file cache that the kernel drops under pressure.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
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
    """How to cut a batch; ``needed`` is the predicted peak in bytes of the largest row."""

    row_tokens: int
    checkpointing: bool
    needed: int
    rows: tuple[Row, ...]

    def careful(self) -> Plan:
        """What is left to try when the prediction was too low."""
        return replace(self, row_tokens=max(1, self.row_tokens // 2), checkpointing=True)


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

    def holds(self, found: Plan) -> bool:
        """Whether the graphs of all rows fit at once, as keeping a forward needs."""
        kept = sum(
            plan.saved_bytes(self.shape, plan.row_size(row), checkpointing=found.checkpointing)
            for row in found.rows
        )
        return int(self.correction * kept) + found.needed <= self.available

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
        return Plan(budget, bool(checkpointing), needed, tuple(rows))

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
    for limit, usage, stat, cache in _CGROUP_FILES:
        if (cgroup / limit).exists():
            given = (cgroup / limit).read_text().strip()
            if given != "max":
                used = int((cgroup / usage).read_text()) - _counter(cgroup / stat, cache)
                free.append(int(given) - used)
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free.append(1024 * int(line.split()[1]))
    return max(0, min(free))


def _counter(path: Path, name: str) -> int:
    counters = dict(line.split() for line in path.read_text().splitlines())
    return int(counters.get(name, 0))


def too_large(error: TooLargeError, data: Sequence[Datum]) -> CommandError:
    """413: refused before anything was logged or computed."""
    trajectory = data[error.datum].trajectory
    turn = sum(datum.trajectory == trajectory for datum in data[: error.datum])
    return CommandError(
        413,
        "BatchTooLarge",
        f"inputs[{trajectory}].samples[{turn}] of {error.tokens} tokens needs "
        f"{error.needed / _GIB:.3g} GiB even alone and with activation checkpointing; "
        f"{error.available / _GIB:.3g} GiB are available",
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
def cut_by(policy: Policy, chosen: Plan) -> Iterator[None]:
    """The policy packs rows and checkpoints layers as the plan says."""
    before = policy.row_tokens, policy.checkpointing
    policy.row_tokens, policy.checkpointing = chosen.row_tokens, chosen.checkpointing
    try:
        yield
    finally:
        policy.row_tokens, policy.checkpointing = before


def attempt(policy: Policy, chosen: Plan, work: Callable[[], T]) -> T:
    """Runs work under the plan, once more and carefully if memory runs out, else raises 507.

    Gradients that a failed attempt added are gone, those from before stay.
    """
    for current in (chosen, chosen.careful()):
        try:
            with _accumulated_apart(policy.parameters), cut_by(policy, current):
                return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("rows of %d tokens: out of memory: %s", current.row_tokens, said)
        # Outside the handler, so that the traceback no longer holds the attempt's tensors.
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
    raise CommandError(
        507,
        "OutOfMemory",
        f"an allocation failed ({said}), again with rows of {current.row_tokens} tokens and "
        f"activation checkpointing; {chosen.needed / _GIB:.3g} GiB were predicted; nothing of this "
        "call was accumulated",
        "send smaller batches, lower sampling.maxTokens, or give the trainer more memory "
        "(spec.trainer.template)",
    )


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
        held = before[name]
        if held is not None:
            parameter.grad = held if parameter.grad is None else held.add_(parameter.grad)


def _budgets(row_tokens: int) -> Iterator[int]:
    """Halves down to the shortest row, then every datum alone."""
    budget = row_tokens
    while budget > SHORTEST_ROW:
        yield budget
        budget //= 2
    yield min(budget, SHORTEST_ROW)
    yield 1
