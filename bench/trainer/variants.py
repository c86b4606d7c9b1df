"""The variants side by side: a name, a step, and the gradients that it left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.trainer.baselines import (
    ADAPTER,
    checkpointed,
    padded_step,
    plain_twin,
    token_tries,
    without_ours,
)
from bench.trainer.workload import Workload
from torch import Tensor

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.packing import Rows, lay_out
from espalier.trainer.compute.gradients import add_loss, without_gradient
from espalier.trainer.policy.policy import Policy

Step = Callable[[], None]
OURS = "ours"
OURS_GC = "ours, checkpointing (which it chooses only when memory is short)"
NAIVE = "padded, all logits (plain Hugging Face)"
GRPO = "TRL GRPOTrainer's algorithm, no checkpointing"
GRPO_GC = "TRL GRPOTrainer's algorithm, checkpointing (its default)"
ASYNC = "TRL AsyncGRPO's algorithm, no checkpointing"
ASYNC_GC = "TRL AsyncGRPO's algorithm, checkpointing (its default)"
TRL = "TRL's own GRPOTrainer._compute_loss, no checkpointing"
NAMES = {
    "ours": OURS,
    "ours-gc": OURS_GC,
    "naive": NAIVE,
    "grpo": GRPO,
    "grpo-gc": GRPO_GC,
    "async": ASYNC,
    "async-gc": ASYNC_GC,
    "trl": TRL,
}


@dataclass(frozen=True)
class Variant:
    """``step`` adds a batch's gradient to ``parameters``, which are by PEFT name."""

    key: str
    step: Step
    parameters: dict[str, Any]

    def gradients(self) -> dict[str, Tensor]:
        """A copy of what the last steps added."""
        return {name: value.grad.detach().clone() for name, value in self.parameters.items()}

    def forget(self) -> None:
        """Drops the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


def variants(
    keys: Sequence[str], work: Workload, policy: Policy, data: Sequence[Datum], micro_batch: int
) -> list[Variant]:
    """The variants named, on one set of weights; the plain model is made only if needed."""
    twin = plain_twin(work, policy) if {"naive", "grpo", "grpo-gc"} & set(keys) else None
    spec = loss_spec("importance_sampling", None)

    if keys == ["trl"]:
        from bench.trainer.trl_own import own_variant  # noqa: PLC0415  # needs TRL's environment

        trainer, step = own_variant(work, policy, data, micro_batch)
        return [Variant("trl", step, _trained(trainer.model))]

    def ours(on: bool) -> Step:
        def step() -> None:
            policy.checkpointing = on
            rows = lay_out(data, policy.row_tokens, without_gradient(data, spec))
            add_loss(policy, rows, spec, None)

        return step

    def tries(on: bool) -> Step:
        def step() -> None:
            policy.checkpointing = on
            rows = Rows(tuple(data), tuple(token_tries(data, policy.row_tokens)))
            with without_ours(policy):
                add_loss(policy, rows, spec, None)

        return step

    def plain(on: bool, full_logits: bool) -> Step:
        def step() -> None:
            checkpointed(twin, on)
            padded_step(twin, data, micro_batch, full_logits=full_logits)

        return step

    steps = {
        "ours": ours(False),
        "ours-gc": ours(True),
        "naive": plain(False, True),
        "grpo": plain(False, False),
        "grpo-gc": plain(True, False),
        "async": tries(False),
        "async-gc": tries(True),
    }
    of_twin = _trained(twin) if twin is not None else {}
    return [
        Variant(key, steps[key], policy.parameters if key in _OF_POLICY else of_twin)
        for key in keys
    ]


_OF_POLICY = {"ours", "ours-gc", "async", "async-gc"}


def _trained(model: Any) -> dict[str, Any]:
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
