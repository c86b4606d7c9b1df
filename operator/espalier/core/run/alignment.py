"""Whether the log-probs of trainer and sampler are near enough for a run to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from espalier.api.meta import Metric, decimal
from espalier.api.metric_names import BATCH_AGE
from espalier.api.trainingrun import TrainingRun

MISMATCH_KL = "policy/mismatch_kl"
HIGH_MISMATCH = "HighMismatch"
MISALIGNED = "LogprobsMisaligned"


def moved(values: Mapping[str, float]) -> bool:
    """Whether the policy took steps since its batch was sampled: then it must differ from it."""
    return values.get(BATCH_AGE, 0.0) > 0


def mismatch(values: Mapping[str, float], run: TrainingRun) -> str:
    """The figure and the threshold that it exceeds; empty if it does not, or is not known."""
    found = None if moved(values) else values.get(MISMATCH_KL)
    threshold = run.spec.logprobs.mismatch_kl_threshold
    if found is None or found <= decimal(threshold):
        return ""
    return f"{MISMATCH_KL} is {found:.3g}, logprobs.mismatchKLThreshold {threshold}"


def held(run: TrainingRun, metrics: Sequence[Metric]) -> str:
    """Why the run is held for its log-probs, with the remedy; empty if it is not."""
    if run.spec.logprobs.on_misaligned != "Pause":
        return ""
    shown = mismatch({metric.name: decimal(metric.value) for metric in metrics}, run)
    if not shown:
        return ""
    return (
        f"{shown}, and logprobs.onMisaligned is Pause: find the cause that LogprobsAligned names, "
        "then raise the threshold or set Warn"
    )
