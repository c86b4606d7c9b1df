"""Compares a client's command with the spec of its run in Git."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from espalier.api.objective import Objective
from espalier.api.run.loss import level_of
from espalier.api.wire.base import Wire
from espalier.api.wire.declared import Declared
from espalier.api.wire.gradients import BackwardRequest, ForwardBackwardRequest, TrajectoriesRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.core.run.learning_rate import scheduled
from espalier.trainer.batch.losses import LossSpec, loss_spec
from espalier.trainer.problems import CommandError


@dataclass(frozen=True)
class _Value:
    """A field of the run's spec: the value there, and the value in the command.

    ``why`` says what else the value comes from.
    """

    field: str
    given: object
    sent: object
    why: str = ""


# A client computes the rate of a step itself, and may round otherwise than we do.
_RATE_TOLERANCE = 1e-9


def check(given: Declared, request: Wire | LossSpec, *, step: int) -> None:
    """Raises 409 with both values for the first thing that differs from the run's spec.

    ``step`` is the one of the run that is next, counted from 1. A LossSpec is what Tinker's client
    takes of tokens that it has given advantages or weights of its own.
    """
    if isinstance(request, LossSpec):
        compared = _explicit(given, request)
    else:
        compared = _compared(given, request, step)
    for value in compared:
        if value.given is not None and value.given != value.sent:
            raise CommandError(
                409,
                "RunSaysOtherwise",
                f"spec.{value.field} of TrainingRun {given.run} is {value.given}{value.why}, "
                f"and the command says {value.sent}; nothing was applied",
                f"send {value.given}, edit spec.{value.field}, or take it out of the spec: what a "
                "run with driver Client leaves out its client decides",
            )


def _compared(given: Declared, request: Wire, step: int) -> Iterator[_Value]:
    if isinstance(request, TrajectoriesRequest):
        yield from _batch(given, request)
    if isinstance(request, ForwardBackwardRequest):
        if given.loss_fn is not None:
            wanted = loss_spec(given.loss_fn, given.loss_fn_config)
            sent = loss_spec(request.loss_fn, request.loss_fn_config)
            yield _Value("loss", _shown(wanted), _shown(sent))
        yield from _objective(given, request, request.loss_fn)
        yield _Value("advantage.estimator", given.advantage_estimator, request.advantage_estimator)
        yield _Value("advantage.scale", given.advantage_scale, request.advantage_scale)
        if given.advantage_source is not None:
            yield from _advantages(given, request)
    if isinstance(request, BackwardRequest):
        yield _Value("loss", given.loss_fn, "a loss of its own")
        yield _Value("advantage.source", given.advantage_source, "a loss of its own")
        if given.correction is not None:
            yield _Value("offPolicyCorrection", given.correction.text, "a loss of its own")
        if given.kl is not None:
            yield _Value("kl", given.kl.text, "a loss of its own")
    if isinstance(request, OptimStepRequest):
        yield from _rate(given, request, step)
        if (optimizer := given.optimizer) is not None:
            yield _Value("optimizer.beta1", optimizer.beta1, request.beta1)
            yield _Value("optimizer.beta2", optimizer.beta2, request.beta2)
            yield _Value("optimizer.epsilon", optimizer.eps, request.eps)
            yield _Value("optimizer.weightDecay", optimizer.weight_decay, request.weight_decay)
            clip = "optimizer.gradientClipNorm"
            yield _Value(clip, optimizer.grad_clip_norm, request.grad_clip_norm)


def _explicit(given: Declared, spec: LossSpec) -> Iterator[_Value]:
    """Groups and lengths are not known here; advantages are the client's."""
    if given.loss_fn is not None:
        wanted = loss_spec(given.loss_fn, given.loss_fn_config)
        yield _Value("loss", _shown(wanted), _shown(spec))
    yield from _objective(given, spec.objective, spec.name)
    yield _Value("sampling.temperature", given.temperature, 1.0)
    if spec.compares_policies:
        yield _Value("advantage.source", given.advantage_source, "Precomputed")


def _rate(given: Declared, request: OptimStepRequest, step: int) -> Iterator[_Value]:
    """The learning rate, which a schedule makes another one at each step."""
    peak, schedule = given.learning_rate, given.learning_rate_schedule
    if peak is None or schedule is None:
        yield _Value("learningRate", peak, request.learning_rate)
        return
    wanted = scheduled(peak, schedule, step)
    if not math.isclose(wanted, request.learning_rate, rel_tol=_RATE_TOLERANCE):
        why = f" at step {step} of {schedule.steps} (learningRateSchedule {schedule.type})"
        yield _Value("learningRate", wanted, request.learning_rate, why)


def _objective(given: Declared, request: Objective, loss: str) -> Iterator[_Value]:
    yield _Value("loss.aggregation", given.aggregation, request.aggregation)
    constant = given.aggregation_constant
    yield _Value("loss.aggregationConstant", constant, request.aggregation_constant)
    bonus = given.entropy_coefficient
    yield _Value("loss.entropyCoefficient", bonus, request.entropy_coefficient)
    if given.loss_fn is not None:
        wanted = level_of(given.loss_fn, given.importance_level)
        sent = level_of(loss, request.importance_level)
        yield _Value("loss.importanceLevel", wanted, sent)
    yield _Value("loss.ratioAnchor", given.ratio_anchor, request.ratio_anchor)
    if given.correction is not None:
        yield _Value("offPolicyCorrection", given.correction.text, request.correction.text)
    if given.kl is not None:
        yield _Value("kl", given.kl.text, request.kl.text)


def _batch(given: Declared, request: TrajectoriesRequest) -> Iterator[_Value]:
    inputs = [item for item in request.inputs if isinstance(item, TrajectoryPayload)]
    for temperature in sorted(_temperatures(request, inputs)):
        yield _Value("sampling.temperature", given.temperature, temperature)
    for size in sorted(_group_sizes(request, inputs)):
        yield _Value("groupSize", given.group_size, size)
    longest = max((len(s.output_token_ids) for i in inputs for s in i.samples), default=0)
    if given.max_tokens is not None and longest > given.max_tokens:
        yield _Value("sampling.maxTokens", given.max_tokens, f"an answer of {longest} tokens")


def _temperatures(request: TrajectoriesRequest, inputs: list[TrajectoryPayload]) -> set[float]:
    """The samples' training temperatures: their own, else the request's, else 1."""
    asked = 1.0 if request.temperature is None else request.temperature
    own = [sample.temperature for item in inputs for sample in item.samples]
    return {asked if temperature is None else temperature for temperature in own}


def _group_sizes(request: TrajectoriesRequest, inputs: list[TrajectoryPayload]) -> set[int]:
    named = Counter(item.group_id for item in inputs if item.group_id is not None)
    return set(named.values()) or {request.group_size or len(inputs)}


def _advantages(given: Declared, request: ForwardBackwardRequest) -> Iterator[_Value]:
    for item in request.inputs:
        if isinstance(item, TrajectoryPayload):
            own = item.advantage is not None or any(s.advantages is not None for s in item.samples)
            source = "Precomputed" if own else "Estimated"
            yield _Value("advantage.source", given.advantage_source, source)


def _shown(spec: LossSpec) -> str:
    """A loss with its settings, defaults filled in."""
    settings = ", ".join(f"{name} {value:g}" for name, value in sorted(spec.config.items()))
    return f"{spec.name} ({settings})" if settings else spec.name
