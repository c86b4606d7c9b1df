"""Runs datums through the policy for log-probs, and accumulates gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import LossSpec, TokenLoss
from espalier.trainer.batch.objective import CallTokens, token_loss
from espalier.trainer.batch.packing import Row, Rows, pack
from espalier.trainer.batch.tally import Tally
from espalier.trainer.policy.frozen_lm_head import Evaluated
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError

# Bounds exp(d) in metrics: a sampler's log-prob may be arbitrarily far off.
MAX_LOG_RATIO = 80.0


@dataclass(frozen=True)
class Part:
    """A row with the datums that its spans index."""

    row: Row
    data: Sequence[Datum]

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """Bounds of the datums' targets."""
        return [(span.start, span.stop) for span in self.row.spans]

    def by_token(self, values: Callable[[Datum], Sequence[float]], like: Tensor) -> Tensor:
        """A per-token property of the row's datums, [N]."""
        flat = [value for span in self.row.spans for value in values(self.data[span.datum])]
        return torch.tensor(flat, dtype=like.dtype)


@dataclass(frozen=True)
class KeptForward:
    """A forward with its graph: each row's evaluation can be differentiated once."""

    rows: tuple[tuple[Row, Evaluated], ...]

    def logprobs(self, count: int) -> list[list[float]]:
        """Log-probs of each of ``count`` datums' output tokens."""
        result: list[list[float]] = [[] for _ in range(count)]
        for row, evaluation in self.rows:
            known = evaluation.logprobs.detach().cpu()
            for span in row.spans:
                result[span.datum] = known[span.start : span.stop].tolist()
        return result


def score(policy: Policy, rows: Rows) -> list[list[float]]:
    """Log-probs of every datum's output tokens, without gradients."""
    with torch.no_grad():
        return forward(policy, rows).logprobs(len(rows.data))


def forward(policy: Policy, rows: Rows) -> KeptForward:
    """A forward pass with all that ``add_weights`` needs."""
    everything = (*rows.with_grad, *rows.no_grad)
    fillers = _fillers(policy, len(everything))
    evaluated = tuple((row, policy.evaluate(row)) for row in everything)
    for row in fillers:
        policy.evaluate(row)
    return KeptForward(evaluated)


def without_gradient(data: Sequence[Datum], spec: LossSpec | None) -> frozenset[int]:
    """Indices of the datums of groups without any gradient; none for a client's own loss.

    A group stays together, because its samples share their prompt's computation.
    """
    if spec is None:
        return frozenset()
    with_gradient = {d.family for d in data if not spec.has_no_gradient(d.advantages, d.weights)}
    return frozenset(index for index, d in enumerate(data) if d.family not in with_gradient)


def add_loss(
    policy: Policy,
    rows: Rows,
    spec: LossSpec,
    group_size: int | None,
    logprobs_of: dict[int, Tensor] | None = None,
) -> Tally:
    """Adds the gradient of a built-in loss; raises 409 if the loss is not finite.

    ``logprobs_of`` receives the log-probs of every datum's targets, by its index.
    """

    anchored = any(datum.anchor_logprobs for datum in rows.data)
    referred = any(datum.reference_logprobs for datum in rows.data)
    chosen = any(datum.counted for datum in rows.data)

    def of_part(part: Part, logprobs: Tensor, entropy: Tensor) -> TokenLoss:
        anchor = part.by_token(lambda d: d.anchor_logprobs, logprobs) if anchored else None
        reference = part.by_token(lambda d: d.reference_logprobs, logprobs) if referred else None
        return token_loss(
            spec,
            CallTokens(
                logprobs=logprobs,
                sampling=part.by_token(_sampling, logprobs),
                anchor=anchor,
                reference=reference,
                entropy=entropy,
                advantages=part.by_token(lambda datum: datum.advantages, logprobs),
                weights=part.by_token(lambda datum: datum.weights, logprobs),
                sequences=part.sequences,
                counted=part.by_token(lambda d: d.counted, logprobs).bool() if chosen else None,
            ),
        )

    evaluations = _evaluations(policy, rows, by_entropy=spec.objective.entropy_coefficient != 0)
    return _add(
        policy,
        evaluations if logprobs_of is None else _noted(evaluations, logprobs_of),
        of_part,
        replace(
            _call(spec.name, group_size, rows.data),
            aggregation=spec.objective.aggregation,
            aggregation_constant=spec.objective.aggregation_constant,
        ),
    )


def add_weights(
    policy: Policy,
    rows: Rows,
    weights: Sequence[Sequence[float]],
    *,
    given: dict[str, float],
    group_size: int | None,
    kept: KeptForward | None = None,
) -> Tally:
    """Adds the gradient of a client's loss C from ``weights[d][t] = -dC/dlogprob``.

    ``kept``, the kept forward of the same rows, spares the forward pass and is used up. The
    rows are the same with and without it, so the sums are too.
    """

    def of_part(part: Part, logprobs: Tensor, _entropy: Tensor) -> TokenLoss:
        flat = [weight for span in part.row.spans for weight in weights[span.datum]]
        tensor = torch.tensor(flat, dtype=logprobs.dtype)
        return TokenLoss(float(-(tensor.double() * logprobs.double()).sum()), -tensor)

    parts = (
        ((Part(row, rows.data), evaluation) for row, evaluation in kept.rows)
        if kept is not None
        else _evaluations(policy, rows)
    )
    return _add(policy, parts, of_part, _call("custom", group_size, rows.data, given))


def _call(
    name: str, group_size: int | None, data: Sequence[Datum], given: dict[str, float] | None = None
) -> Tally:
    return Tally(
        loss_name=name,
        group_size=group_size or 0,
        datums=len(data),
        rewards=tuple({datum.trajectory: datum.reward for datum in data}.values()),
        given=given or {},
    )


def _evaluations(
    policy: Policy, rows: Rows, *, by_entropy: bool = False
) -> Iterator[tuple[Part, Evaluated]]:
    fillers = _fillers(policy, len(rows.with_grad) + len(rows.no_grad))
    together = policy.sharding.size > 1
    for planned, differentiable in ((rows.with_grad, True), (rows.no_grad, False)):
        for row in planned:
            # When ranks run a row together, another rank may need its gradient.
            with torch.set_grad_enabled(differentiable or together):
                evaluation = policy.evaluate(row, by_entropy=by_entropy)
            yield Part(row, rows.data), evaluation
    for row in fillers:
        yield Part(row, ()), policy.evaluate(row)


def _noted(
    evaluations: Iterable[tuple[Part, Evaluated]], logprobs_of: dict[int, Tensor]
) -> Iterator[tuple[Part, Evaluated]]:
    """The same evaluations; takes down their log-probs by datum."""
    for part, evaluation in evaluations:
        if part.data:
            known = evaluation.logprobs.detach().cpu()
            for span in part.row.spans:
                # A copy, so that the row's tensor is freed.
                logprobs_of[span.datum] = known[span.start : span.stop].clone()
        yield part, evaluation


def _fillers(policy: Policy, count: int) -> list[Row]:
    """Rows without effect: all ranks that share the weights must run the same number of rows.

    Ranks agree on the number before the first row.
    """
    missing = policy.sharding.longest(count) - count
    return pack([Datum((0,), (0,), (), 0.0, 0.0, 0, None)], 1) * missing


def _add(
    policy: Policy,
    evaluations: Iterable[tuple[Part, Evaluated]],
    of_part: Callable[[Part, Tensor, Tensor], TokenLoss],
    call: Tally,
) -> Tally:
    tally = call
    for part, evaluation in evaluations:
        logprobs = evaluation.logprobs
        known, entropy = logprobs.detach().cpu(), evaluation.entropy.detach().cpu()
        nothing = TokenLoss(0.0, torch.zeros_like(known))
        loss = of_part(part, known, entropy) if part.data else nothing
        failure = _not_finite(part, loss)
        if policy.sharding.agree(failure, with_grad=bool((~loss.still).any())):
            outputs, slopes = [logprobs], [loss.gradient.to(logprobs.device)]
            if loss.entropy_gradient is not None:
                outputs.append(evaluation.entropy)
                slopes.append(loss.entropy_gradient.to(logprobs.device))
            torch.autograd.backward(outputs, slopes)
        if part.data:
            tally = tally + loss.sums + _part_tally(part, known, loss, entropy, call)
    return tally


def _not_finite(part: Part, loss: TokenLoss) -> CommandError | None:
    if math.isfinite(loss.loss) and bool(loss.gradient.isfinite().all()):
        return None
    fields = sorted({part.data[span.datum].field for span in part.row.spans})
    return CommandError(
        409,
        "NonFiniteLoss",
        f"the loss of {', '.join(fields)} is not finite",
        "check the sampler's log-probs and advantages; nothing of this call was accumulated",
    )


def _part_tally(
    part: Part, logprobs: Tensor, loss: TokenLoss, entropy: Tensor, call: Tally
) -> Tally:
    trained = part.by_token(lambda datum: datum.trained, logprobs).bool()
    compared = all(part.data[span.datum].sampling_logprobs for span in part.row.spans)
    difference = logprobs - part.by_token(_sampling, logprobs) if compared else logprobs[:0]
    difference = difference.double()[trained] if compared else difference.double()
    bounded = difference.clamp(max=MAX_LOG_RATIO)
    return Tally(
        loss_name=call.loss_name,
        group_size=call.group_size,
        aggregation=call.aggregation,
        aggregation_constant=call.aggregation_constant,
        loss=loss.loss,
        tokens=int(trained.sum()),
        unique=len(part.row.tokens),
        zero_gradient=int(loss.still[trained].sum()),
        clipped_low=loss.clipped_low,
        clipped_high=loss.clipped_high,
        compared=len(difference),
        assumed=_assumed(part) if compared else 0,
        difference_max=float(difference.abs().max()) if len(difference) else 0.0,
        difference_sum=float(difference.abs().sum()),
        signed_sum=float(difference.sum()),
        ratio_sum=float(bounded.exp().sum()),
        ratio_max=float(bounded.exp().max()) if len(difference) else 0.0,
        divergence_sum=float((bounded.expm1() - bounded).sum()),
        entropy_sum=float(entropy.double()[trained].sum()),
    )


def _assumed(part: Part) -> int:
    data = [part.data[span.datum] for span in part.row.spans]
    return sum(len(datum.output) for datum in data if datum.assumed and not datum.masked)


def _sampling(datum: Datum) -> Sequence[float]:
    """The sampler's log-probs; zeros for a datum without them."""
    return datum.sampling_logprobs or (0.0,) * len(datum.output)
