"""The figures of a checkpoint: reported by later commits, and stored in its own status.

The samples for a step are drawn from a checkpoint that is there, so the step that they made says
how that one did. A commit that is fenced says nothing, and a commit of another run neither: its
tasks are others. The first word counts, and what a status says stays when who said it is deleted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping

from espalier.api.checkpoint import Checkpoint
from espalier.api.meta import METRIC_NAME_CHARS, METRIC_VALUE_CHARS, Metric, decimal_string
from espalier.api.metric_names import MEASURED_MOST, is_measured, of_step
from espalier.core.lineage.integrity import recorded_metrics
from espalier.core.manifests.labels import MEASURED_ANNOTATION, RUN_UID_ANNOTATION

# What most say, first steps and those of scripts that measure nothing.
NOTHING = "{}"


def annotation(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The annotation with the figures that a commit reports of other checkpoints."""
    return json.dumps(
        {
            checkpoint: {name: decimal_string(value) for name, value in sorted(found.items())}
            for checkpoint, found in sorted(measured.items())
        }
    )


def told(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """The figures that a Checkpoint reports of others, by name; without those that are not numbers.

    Before figures of checkpoints had names of their own, a step's rewards bore them: they are those
    of its parent.
    """
    recorded = checkpoint.metadata.annotations.get(MEASURED_ANNOTATION)
    if recorded == NOTHING:
        return {}
    if recorded is None:
        parent = checkpoint.spec.parent_ref
        old = recorded_metrics(checkpoint.metadata.annotations) or {}
        rewards = {name: value for name, value in old.items() if is_measured(name)}
        return {parent.name: rewards} if parent is not None and rewards else {}
    try:
        found = json.loads(recorded)
        return {name: _figures(figures) for name, figures in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def named(recorded: str) -> list[str]:
    """The names of the Checkpoints whose figures an annotation reports."""
    try:
        found = json.loads(recorded or NOTHING)
    except (ValueError, RecursionError):
        return []
    return [*found] if isinstance(found, dict) else []


def tellers(checkpoint: Checkpoint, among: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
    """The Checkpoints that may report figures of a checkpoint, oldest first."""
    uid = checkpoint.metadata.annotations.get(RUN_UID_ANNOTATION, "")
    for teller in sorted(among, key=_age):
        same = uid in ("", teller.metadata.annotations.get(RUN_UID_ANNOTATION, ""))
        if same and _age(checkpoint) < _age(teller):
            yield teller


def metrics(checkpoint: Checkpoint, among: Iterable[Checkpoint]) -> list[Metric]:
    """All metrics of a checkpoint: of its step, as recorded with it, and what was measured of it.

    ``among`` are the Checkpoints that say something of it; its own list if that says just this.
    """
    stored = {metric.name: metric.value for metric in checkpoint.status.metrics}
    recorded = recorded_metrics(checkpoint.metadata.annotations) or {}
    step = {of_step(name): value for name, value in recorded.items()}
    own: dict[str, str] = {}
    for teller in tellers(checkpoint, among):
        own = told(teller).get(checkpoint.metadata.name, {}) | own
    own |= {
        name: value
        for name, value in stored.items()
        # A status of before: the step's rewards bore these names.
        if is_measured(name) and (name not in recorded or of_step(name) in stored)
    }
    # The latest evaluation counts: unlike samples, it may be repeated.
    own |= {m.name: m.value for one in checkpoint.status.evaluations for m in one.metrics}
    wanted = step | dict(sorted(own.items())[:MEASURED_MOST])
    if stored == wanted and len(checkpoint.status.metrics) == len(wanted):
        return checkpoint.status.metrics
    return [Metric(name=name, value=value) for name, value in sorted(wanted.items())]


def value(checkpoint: Checkpoint, metric: str) -> str:
    """The value of a metric of a checkpoint; empty if it was not measured, or is of its step."""
    if not is_measured(metric):
        return ""
    return next((m.value for m in checkpoint.status.metrics if m.name == metric), "")


def known(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """The names of the metrics that were measured of any of the checkpoints."""
    return sorted({m.name for c in checkpoints for m in c.status.metrics if is_measured(m.name)})


def missing(checkpoint: Checkpoint, metric: str) -> str:
    """The end of a sentence that says which metrics a checkpoint has instead."""
    if not is_measured(metric):
        return f"has no {metric} of its own: that is of the step that made it"
    if others := known([checkpoint]):
        return f"has no {metric}, only {', '.join(others)}"
    return f"has no {metric} yet: it comes with the next step, which samples it"


def _figures(figures: Mapping[str, str]) -> dict[str, str]:
    return {
        name: text
        for name, text in figures.items()
        if is_measured(name)
        and len(name) <= METRIC_NAME_CHARS
        and len(text) <= METRIC_VALUE_CHARS
        and _is_number(text)
    }


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _age(checkpoint: Checkpoint) -> tuple[int, int, str]:
    return checkpoint.spec.term, checkpoint.spec.step, checkpoint.metadata.name
