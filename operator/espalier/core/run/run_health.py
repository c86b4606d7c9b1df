"""What a step's metrics and the rollouts say about the health of a run."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.meta import Metric, decimal
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.conditions import Finding

REWARDS_INFORMATIVE = "RewardsInformative"
LOGPROBS_ALIGNED = "LogprobsAligned"
ROLLOUTS_HEALTHY = "RolloutsHealthy"
# Above this share of groups with equal rewards a step hardly teaches anything.
UNINFORMATIVE_FRACTION = 0.9
# Above this share of completions that were cut off, that is what is wrong.
MANY_CUT = 0.5
# No ratio reaches it where the sampler's distribution was cut: what is left became likelier.
MOST_RATIO = 1.001
# Mean absolute difference of trainer and sampler log-probs that the dtype explains.
ALIGNED_MEAN = {"float32": 1e-3, "bfloat16": 5e-2}


def step_findings(
    metrics: Sequence[Metric], run: TrainingRun, model: TrainableModel | None
) -> list[Finding]:
    """RewardsInformative and LogprobsAligned of the latest step; Unknown before the first."""
    values = {metric.name: decimal(metric.value) for metric in metrics}
    return [_rewards(values, run, model), _logprobs(values, run, model)]


def rollouts_healthy(model: TrainableModel | None, started: int) -> Finding:
    """RolloutsHealthy: that all have started, or else as the model sees its rollouts.

    One that serves the full weights of each step in turn is not ready for a moment at every step.
    """
    wanted = model.spec.rollout.replicas if model is not None else 0
    if 0 < wanted <= started:
        return Finding(ROLLOUTS_HEALTHY, "True", "PodsStarted", f"{wanted} of {wanted}")
    condition = (
        conditions.find(model.status.conditions, conditions.ROLLOUTS_READY)
        if model is not None
        else None
    )
    if condition is None:
        return Finding(ROLLOUTS_HEALTHY, "Unknown", "NotSeen", "the model has not been looked at")
    return Finding(ROLLOUTS_HEALTHY, condition.status, condition.reason, condition.message)


def _rewards(values: dict[str, float], run: TrainingRun, model: TrainableModel | None) -> Finding:
    fraction = values.get("group/zero_variance_fraction")
    if fraction is None:
        return Finding(REWARDS_INFORMATIVE, "Unknown", "NotMeasured", "no step has reported it")
    shown = f"{fraction:.0%} of the groups had equal rewards, limit {UNINFORMATIVE_FRACTION:.0%}"
    truncated = values.get("completion/truncated_fraction", 0.0)
    cut, endless = f"{truncated:.0%} of the completions were cut off", _endless(run, model)
    if fraction < UNINFORMATIVE_FRACTION:
        message = f"{shown}. {cut}: {endless}" if truncated > MANY_CUT and endless else shown
        return Finding(REWARDS_INFORMATIVE, "True", "RewardsVary", message)
    remedy = (
        f"{cut}: {endless or 'raise sampling.maxTokens'}"
        if truncated > MANY_CUT
        else "choose easier or harder tasks, or raise groupSize"
    )
    return Finding(REWARDS_INFORMATIVE, "False", "RewardsEqual", f"{shown}. {remedy}")


def _endless(run: TrainingRun, model: TrainableModel | None) -> str:
    """Why no completion can end before maxTokens, with the remedy; empty if it can."""
    resolved = model.status.resolved if model is not None else None
    end = resolved.unstopped_turn_end if resolved is not None else None
    sampling = run.spec.sampling
    if end is None:
        return ""
    if run.spec.driver == "Client":
        return f"{end.shown}: sample with stop_token_ids [{end.token_id}]"
    if end.token_id in (sampling.stop_token_ids or ()) or end.token in (sampling.stop or ()):
        return ""
    return f"{end.shown}: set sampling.stopTokenIds: [{end.token_id}]"


def _logprobs(values: dict[str, float], run: TrainingRun, model: TrainableModel | None) -> Finding:
    difference = values.get("logprob/difference_mean")
    if difference is None or model is None:
        return Finding(LOGPROBS_ALIGNED, "Unknown", "NotMeasured", "no step has reported it")
    spec = model.spec
    mixed = spec.rollout.dtype not in (None, spec.trainer.dtype)
    limit = max(ALIGNED_MEAN[spec.trainer.dtype], ALIGNED_MEAN["bfloat16"] if mixed else 0.0)
    shown = f"trainer and sampler differ by {difference:.2g} on average, limit {limit:.2g}"
    if difference <= limit:
        return Finding(LOGPROBS_ALIGNED, "True", "Aligned", shown)
    reason, cause = _cause(values, run.spec.driver)
    return Finding(LOGPROBS_ALIGNED, "False", reason, f"{shown}: {cause}")


def _cause(values: dict[str, float], driver: str) -> tuple[str, str]:
    """Reason and cause of log-probs that differ by more than dtypes do, as far as it is known.

    Samples that say how they were drawn are trained as drawn, or were refused.
    """
    assumed = values.get("logprob/temperature_assumed_fraction", 0.0)
    if assumed and values.get("policy/ratio_max", MOST_RATIO) < MOST_RATIO:
        return "DistributionShifted", (
            "every token was likelier to its sampler, as with top_p, top_k or a grammar. Sample "
            "for training with temperature alone"
        )
    if assumed:
        return "TemperatureUnknown", (
            f"{assumed:.0%} of the tokens came without a temperature and were taken for 1. Send "
            "with each sample the one that it was drawn at; if it was 1, the samples are of "
            "another checkpoint than the one trained"
        )
    if driver == "Client":
        return "OtherPolicy", (
            "the client's samples are of another checkpoint than the one trained. Sample anew "
            "after each step, or choose a loss for data this old"
        )
    return "Diverged", (
        "trainer and rollouts compute differently from the same weights. Set trainer.dtype and "
        "rollout.dtype alike, and report it if they are"
    )
