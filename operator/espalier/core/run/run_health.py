"""What a step's metrics and the rollouts say about the health of a run."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.meta import Metric, decimal
from espalier.api.run.status import BarrenRounds
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.conditions import Finding
from espalier.core.run.alignment import HIGH_MISMATCH, mismatch, moved

REWARDS_INFORMATIVE = "RewardsInformative"
LOGPROBS_ALIGNED = "LogprobsAligned"
ROLLOUTS_HEALTHY = "RolloutsHealthy"
# Above this share of groups with equal rewards a step hardly teaches anything.
UNINFORMATIVE_FRACTION = 0.9
# Above this share of completions that were cut off, that is what is wrong.
MANY_CUT = 0.5
_ALL_PASS = "group/all_pass_fraction"
_SCORER = "see the event scorer-error in the runner's log, and taskset.onError"
# No ratio reaches it where the sampler's distribution was cut: what is left became likelier.
MOST_RATIO = 1.001
# Mean absolute difference of trainer and sampler log-probs that the dtype explains.
ALIGNED_MEAN = {"float32": 1e-3, "bfloat16": 5e-2}


def step_findings(
    metrics: Sequence[Metric],
    run: TrainingRun,
    model: TrainableModel | None,
    barren_rounds: BarrenRounds | None = None,
) -> list[Finding]:
    """RewardsInformative and LogprobsAligned of the latest step; Unknown before the first.

    While rounds for the next one teach nothing, that is what is said of rewards.
    """
    values = {metric.name: decimal(metric.value) for metric in metrics}
    rewards = _rewards(values, run, model)
    if barren_rounds is not None:
        rewards = Finding(REWARDS_INFORMATIVE, "False", barren_rounds.reason, barren_rounds.message)
    return [rewards, _logprobs(values, run, model)]


def barren(run: TrainingRun, step: int) -> BarrenRounds | None:
    """The rounds that brought no step yet; None once ``step``, the latest, is the one."""
    told = run.status.barren_rounds
    return told if told is not None and told.step > step else None


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
    unscored = values.get("completion/unscored_fraction", 0.0)
    if unscored > MANY_CUT:
        message = f"{unscored:.0%} of the completions could not be scored: {_SCORER}"
        return Finding(REWARDS_INFORMATIVE, "False", "RewardErrors", message)
    fraction = values.get("group/zero_variance_fraction")
    if fraction is None:
        return Finding(REWARDS_INFORMATIVE, "Unknown", "NotMeasured", "no step has reported it")
    shown = f"{fraction:.0%} of the groups had equal rewards, limit {UNINFORMATIVE_FRACTION:.0%}"
    truncated = values.get("completion/truncated_fraction", 0.0)
    cut, endless = f"{truncated:.0%} of the completions were cut off", _endless(run, model)
    if fraction < UNINFORMATIVE_FRACTION:
        message = f"{shown}. {cut}: {endless}" if truncated > MANY_CUT and endless else shown
        return Finding(REWARDS_INFORMATIVE, "True", "RewardsVary", message)
    reason, cause = _why_equal(values)
    if truncated > MANY_CUT and values.get(_ALL_PASS, 0.0) < UNINFORMATIVE_FRACTION:
        reason, cause = "Truncating", f"{cut}: {endless or 'raise sampling.maxTokens'}"
    return Finding(REWARDS_INFORMATIVE, "False", reason, f"{shown}. {cause}")


def _why_equal(values: dict[str, float]) -> tuple[str, str]:
    """Reason and cause of equal rewards, with the remedy; not of completions that were cut."""
    passed, failed = values.get(_ALL_PASS, 0.0), values.get("group/all_fail_fraction", 0.0)
    if passed >= UNINFORMATIVE_FRACTION:
        return "AllPassed", (
            f"In {passed:.0%} every answer was right: choose harder tasks, the model has learnt "
            "these"
        )
    lacking = values.get("completion/no_answer_fraction", 0.0)
    if lacking > MANY_CUT:
        return "NoAnswers", (
            f"taskset.answerExtraction finds no answer in {lacking:.0%} of the completions: say in "
            "taskset.promptTemplate how to answer, or extract in another way"
        )
    if failed >= UNINFORMATIVE_FRACTION:
        return "AllFailed", (
            f"In {failed:.0%} every answer was wrong: choose easier tasks, or raise groupSize"
        )
    return "ZeroVarianceGroups", "Choose easier or harder tasks, or raise groupSize"


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
    before = conditions.find(run.status.conditions, LOGPROBS_ALIGNED)
    if moved(values) and before is not None:
        # As the first step of the batch found: the later ones have other weights than sampled it.
        return Finding(LOGPROBS_ALIGNED, before.status, before.reason, before.message)
    if shown := mismatch(values, run):
        message = f"{shown}: {_cause(values, run.spec.driver)[1]}"
        return Finding(LOGPROBS_ALIGNED, "False", HIGH_MISMATCH, message)
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
