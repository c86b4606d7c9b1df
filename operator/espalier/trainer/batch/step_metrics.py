"""The registry of a step's metrics, each made from a Tally."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.metric_names import TOKENS_TRAINED
from espalier.trainer.batch.tally import Tally

# An advantage below this in size counts as none.
NO_ADVANTAGE = 1e-8


@dataclass(frozen=True)
class Metric:
    """A metric and its two names; ``answer`` is empty if only a step has it."""

    answer: str
    checkpoint: str
    meaning: str
    of: Callable[[Tally], float]
    known: Callable[[Tally], bool] = lambda _tally: True


def _compared(tally: Tally) -> bool:
    return tally.compared > 0


def _corrected(tally: Tally) -> bool:
    return tally.corrected > 0


def _rewarded(tally: Tally) -> bool:
    return bool(tally.rewards)


def _advised(tally: Tally) -> bool:
    return bool(tally.advantages)


METRICS = (
    Metric("loss:sum", "loss/sum", "The loss, summed over trained tokens.", lambda t: t.loss),
    Metric(
        "tokens:sum",
        TOKENS_TRAINED,
        "Output tokens that the loss ran over.",
        lambda t: float(t.tokens),
    ),
    Metric(
        "unique_tokens:sum",
        "tokens/unique",
        "Tokens that went through the model: a prompt that samples share counts once per row.",
        lambda t: float(t.unique),
    ),
    Metric(
        "zero_gradient:mean",
        "tokens/zero_gradient_fraction",
        "Share of the trained tokens whose gradient is exactly zero (no advantage, or clipped).",
        lambda t: t.zero_gradient / t.tokens,
        lambda t: t.tokens > 0,
    ),
    Metric(
        "entropy:mean",
        "policy/entropy",
        "Entropy of the trainer's next-token distribution at the trained tokens, in nats.",
        lambda t: t.entropy_sum / t.tokens,
        lambda t: t.tokens > 0,
    ),
    Metric(
        "ratio:mean",
        "policy/ratio_mean",
        "Trainer's over sampler's probability of the sampled token.",
        lambda t: t.ratio_sum / t.compared,
        _compared,
    ),
    Metric(
        "ratio:max",
        "policy/ratio_max",
        "The largest of these ratios.",
        lambda t: t.ratio_max,
        _compared,
    ),
    Metric(
        "clipped:mean",
        "policy/clipped_fraction",
        "Share of tokens whose ratio the loss clipped.",
        lambda t: (t.clipped_low + t.clipped_high) / t.compared,
        _compared,
    ),
    Metric(
        "clipped_low:mean",
        "policy/clipped_fraction_low",
        "Share of tokens clipped at the lower threshold.",
        lambda t: t.clipped_low / t.compared,
        _compared,
    ),
    Metric(
        "clipped_high:mean",
        "policy/clipped_fraction_high",
        "Share of tokens clipped at the upper threshold.",
        lambda t: t.clipped_high / t.compared,
        _compared,
    ),
    Metric(
        "logprob_difference:mean",
        "logprob/difference_mean",
        "Absolute difference of the trainer's and the sampler's log-prob of a token.",
        lambda t: t.difference_sum / t.compared,
        _compared,
    ),
    Metric(
        "logprob_difference:max",
        "logprob/difference_max",
        "The largest of these differences.",
        lambda t: t.difference_max,
        _compared,
    ),
    Metric(
        "temperature_assumed:mean",
        "logprob/temperature_assumed_fraction",
        "Share of these tokens whose samples named no temperature and were taken for 1.",
        lambda t: t.assumed / t.compared,
        _compared,
    ),
    Metric(
        "mismatch_kl:mean",
        "policy/mismatch_kl",
        "KL(sampler || trainer), estimator k3: mean of exp(d) - 1 - d, d = lp - q; never negative.",
        lambda t: t.divergence_sum / t.compared,
        _compared,
    ),
    Metric(
        "mismatch_kl_k1:mean",
        "policy/mismatch_kl_k1",
        "KL(sampler || trainer), estimator k1: mean of q - lp; unbiased, may be negative.",
        lambda t: -t.signed_sum / t.compared,
        _compared,
    ),
    Metric(
        "reference_kl:mean",
        "policy/reference_kl",
        "KL(policy || reference), estimator k3: mean of exp(d) - 1 - d, d the reference's minus "
        "the policy's log-prob; never negative. Where the run has kl.reference.",
        lambda t: t.reference_kl_sum / t.referred,
        lambda t: t.referred > 0,
    ),
    Metric(
        "correction_weight:mean",
        "policy/correction_weight_mean",
        "Off-policy weight of a token; a masked one has 0. Where the run corrects.",
        lambda t: t.correction_weight_sum / t.corrected,
        _corrected,
    ),
    Metric(
        "correction_truncated:mean",
        "policy/correction_truncated_fraction",
        "Share of tokens whose off-policy weight was cut to maxRatio. Where the run corrects.",
        lambda t: t.correction_truncated / t.corrected,
        _corrected,
    ),
    Metric(
        "correction_masked:mean",
        "policy/correction_masked_fraction",
        "Share of tokens that the off-policy correction dropped. Where the run corrects.",
        lambda t: t.correction_masked / t.corrected,
        _corrected,
    ),
    Metric(
        "",
        "rollout/reward/mean",
        "Mean reward of the trajectories trained on; a client's own figure wins.",
        lambda t: statistics.fmean(t.rewards),
        _rewarded,
    ),
    Metric(
        "",
        "rollout/reward/std",
        "Population standard deviation of these rewards; a client's own figure wins.",
        lambda t: statistics.pstdev(t.rewards),
        _rewarded,
    ),
    Metric(
        "",
        "rollout/reward/min",
        "The lowest of these rewards; a client's own figure wins.",
        lambda t: min(t.rewards),
        _rewarded,
    ),
    Metric(
        "",
        "rollout/reward/max",
        "The highest of these rewards; a client's own figure wins.",
        lambda t: max(t.rewards),
        _rewarded,
    ),
    Metric(
        "",
        "advantage/mean",
        "Mean advantage of the trajectories trained on, before a KL penalty; of those that bring "
        "one for each token, of the tokens. Losses that read advantages alone.",
        lambda t: statistics.fmean(t.advantages),
        _advised,
    ),
    Metric(
        "",
        "advantage/std",
        "Population standard deviation of these advantages.",
        lambda t: statistics.pstdev(t.advantages),
        _advised,
    ),
    Metric(
        "",
        "advantage/min",
        "The lowest of these advantages.",
        lambda t: min(t.advantages),
        _advised,
    ),
    Metric(
        "",
        "advantage/max",
        "The highest of these advantages.",
        lambda t: max(t.advantages),
        _advised,
    ),
    Metric(
        "",
        "advantage/zero_fraction",
        "Share of these advantages that are 0 (below 1e-8 in size): they teach nothing.",
        lambda t: statistics.fmean(abs(value) < NO_ADVANTAGE for value in t.advantages),
        _advised,
    ),
    Metric(
        "",
        "trajectories/trained",
        "Trajectories of the step.",
        lambda t: len(t.rewards),
        _rewarded,
    ),
    Metric("", "datums/trained", "Samples of the step.", lambda t: t.datums, _rewarded),
)
# The step adds these; they are not in any tally.
GRADIENT_NORM = ("optimizer/gradient_norm", "Global L2 norm of the gradient before clipping.")
LEARNING_RATE = ("optimizer/learning_rate", "The learning rate that the step was taken with.")


def answer_metrics(tally: Tally) -> dict[str, float]:
    """The metrics of a call's answer: ``name:reduction``."""
    named = {m.answer: m.of(tally) for m in METRICS if m.answer and m.known(tally)}
    return named | tally.given


def checkpoint_metrics(tally: Tally) -> dict[str, float]:
    """The metrics of a checkpoint: ``part/name``."""
    return tally.given | {m.checkpoint: m.of(tally) for m in METRICS if m.known(tally)}
