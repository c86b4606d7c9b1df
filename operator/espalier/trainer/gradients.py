"""Datums through the policy: log-probs, and gradients added to those already accumulated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from espalier.trainer.data import Datum
from espalier.trainer.losses import LossSpec, TokenLoss, token_loss
from espalier.trainer.model import Policy
from espalier.trainer.packing import Row, pack
from espalier.trainer.problems import CommandError


@dataclass(frozen=True)
class Tally:
    """Sums over the tokens of one or more calls; tallies add.

    ``compared`` tokens had a sampler log-prob q; over them, with d = lp - q: the largest and the
    summed |d|, and the summed k3 estimate of the sampler-to-trainer divergence exp(d) - 1 - d.
    """

    loss_name: str = ""
    group_size: int = 0
    loss: float = 0.0
    tokens: int = 0
    clipped: int = 0
    compared: int = 0
    difference_max: float = 0.0
    difference_sum: float = 0.0
    divergence_sum: float = 0.0
    rewards: tuple[float, ...] = ()
    given: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        """Both together; name and group size are the later one's."""
        return Tally(
            loss_name=other.loss_name,
            group_size=other.group_size,
            loss=self.loss + other.loss,
            tokens=self.tokens + other.tokens,
            clipped=self.clipped + other.clipped,
            compared=self.compared + other.compared,
            difference_max=max(self.difference_max, other.difference_max),
            difference_sum=self.difference_sum + other.difference_sum,
            divergence_sum=self.divergence_sum + other.divergence_sum,
            rewards=self.rewards + other.rewards,
            given=self.given | other.given,
        )

    def answer_metrics(self) -> dict[str, float]:
        """As a call answers: ``name:reduction``."""
        metrics = {"loss:sum": self.loss, "tokens:sum": float(self.tokens)}
        if self.compared:
            metrics["logprob_difference:max"] = self.difference_max
            metrics["logprob_difference:mean"] = self.difference_sum / self.compared
            metrics["mismatch_kl:mean"] = self.divergence_sum / self.compared
            metrics["clipped:mean"] = self.clipped / self.compared
        return metrics | self.given

    def checkpoint_metrics(self) -> dict[str, float]:
        """As a checkpoint records them: ``part/name``."""
        metrics = dict(self.given)
        if self.rewards:
            metrics["reward/mean"] = statistics.fmean(self.rewards)
            metrics["reward/std"] = statistics.pstdev(self.rewards)
        metrics["loss/sum"] = self.loss
        metrics["tokens/trained"] = float(self.tokens)
        if self.compared:
            metrics["logprob/difference_max"] = self.difference_max
            metrics["logprob/difference_mean"] = self.difference_sum / self.compared
            metrics["policy/mismatch_kl"] = self.divergence_sum / self.compared
            metrics["policy/clipped_fraction"] = self.clipped / self.compared
        return metrics


def total(tallies: Sequence[Tally]) -> Tally:
    """Several calls as one."""
    return reduce(lambda one, other: one + other, tallies, Tally())


def score(policy: Policy, data: Sequence[Datum], temperature: float) -> list[list[float]]:
    """Log-probs of every datum's output tokens, without gradients."""
    result: list[list[float]] = [[] for _ in data]
    with torch.no_grad():
        for row in pack(data, policy.row_tokens):
            logprobs = policy.evaluate(row, temperature).logprobs.cpu()
            for span in row.spans:
                result[span.datum] = [float(x) for x in logprobs[span.start : span.stop]]
    return result


def add_loss(
    policy: Policy,
    data: Sequence[Datum],
    spec: LossSpec,
    temperature: float,
    group_size: int | None,
) -> Tally:
    """Adds the gradient of a built-in loss; raises 409 if the loss is not finite."""

    def of_row(row: Row, logprobs: Tensor) -> TokenLoss:
        sampling = _sampling(data, row, logprobs)
        advantages = _by_token(row, [datum.advantage for datum in data], logprobs)
        return token_loss(spec, logprobs, sampling, advantages, torch.ones_like(logprobs))

    tally = Tally(
        loss_name=spec.name,
        group_size=group_size or 0,
        rewards=tuple({datum.trajectory: datum.reward for datum in data}.values()),
    )
    return _add(policy, data, temperature, of_row, tally)


def add_weights(
    policy: Policy,
    data: Sequence[Datum],
    weights: Sequence[Sequence[float]],
    temperature: float,
    *,
    given: dict[str, float],
    group_size: int | None,
) -> Tally:
    """Adds the gradient of a client's loss C from ``weights[d][t] = -dC/dlogprob``."""

    def of_row(row: Row, logprobs: Tensor) -> TokenLoss:
        flat = [weight for span in row.spans for weight in weights[span.datum]]
        tensor = torch.tensor(flat, dtype=logprobs.dtype)
        return TokenLoss(float(-(tensor.double() * logprobs.double()).sum()), -tensor, 0)

    tally = Tally(
        loss_name="custom",
        group_size=group_size or 0,
        rewards=tuple({datum.trajectory: datum.reward for datum in data}.values()),
        given=given,
    )
    return _add(policy, data, temperature, of_row, tally)


def _add(
    policy: Policy,
    data: Sequence[Datum],
    temperature: float,
    of_row: Callable[[Row, Tensor], TokenLoss],
    tally: Tally,
) -> Tally:
    for row in pack(data, policy.row_tokens):
        logprobs = policy.evaluate(row, temperature).logprobs
        known = logprobs.detach().cpu()
        part = of_row(row, known)
        if not math.isfinite(part.loss) or not bool(part.gradient.isfinite().all()):
            trajectories = sorted({data[span.datum].trajectory for span in row.spans})
            raise CommandError(
                409,
                "NonFiniteLoss",
                f"the loss of inputs {trajectories} is not finite",
                "check output_logprobs and advantages; nothing of this call was accumulated",
            )
        if bool(part.gradient.any()):
            logprobs.backward(part.gradient.to(logprobs.device))  # type: ignore[no-untyped-call]
        tally = tally + _row_tally(data, row, known, part, tally)
    return tally


def _row_tally(
    data: Sequence[Datum], row: Row, logprobs: Tensor, part: TokenLoss, call: Tally
) -> Tally:
    compared = all(data[span.datum].sampling_logprobs for span in row.spans)
    difference = logprobs - _sampling(data, row, logprobs) if compared else logprobs[:0]
    return Tally(
        loss_name=call.loss_name,
        group_size=call.group_size,
        loss=part.loss,
        tokens=len(logprobs),
        clipped=part.clipped,
        compared=len(difference),
        difference_max=float(difference.abs().max()) if len(difference) else 0.0,
        difference_sum=float(difference.abs().double().sum()),
        divergence_sum=float((difference.double().expm1() - difference.double()).sum()),
    )


def _sampling(data: Sequence[Datum], row: Row, like: Tensor) -> Tensor:
    """The sampler's log-probs of the row's targets; zeros for datums that came without."""
    flat: list[float] = []
    for span in row.spans:
        flat += data[span.datum].sampling_logprobs or [0.0] * (span.stop - span.start)
    return torch.tensor(flat, dtype=like.dtype)


def _by_token(row: Row, per_datum: Sequence[float], like: Tensor) -> Tensor:
    flat: list[float] = []
    for span in row.spans:
        flat += [per_datum[span.datum]] * (span.stop - span.start)
    return torch.tensor(flat, dtype=like.dtype)
