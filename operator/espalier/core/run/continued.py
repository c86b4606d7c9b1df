"""A run that was lost with its object, and goes on as another of its name.

The trainer counts steps by a run's name and uid, so that a run that is deleted and made again
begins at 0. Where the object was lost against its owner's will, the owner says so on the new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.checkpoint import Checkpoint
from espalier.api.trainingrun import TrainingRun

# On a TrainingRun: the uid that the lost run of this name had; its Checkpoints carry it.
CONTINUES = "espalier.dev/continues"


def counted_as(run: TrainingRun) -> str:
    """The uid that the run's steps are counted under: that of the run it continues, or its own."""
    return run.metadata.annotations.get(CONTINUES) or run.metadata.uid


def own(run: TrainingRun, made: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """What was made under that uid, if by a run of this name: the trainer counts by both."""
    first = made[0].spec.run_ref if made else None
    return made if first is not None and first.name == run.metadata.name else ()


def unknown(run: TrainingRun, made: Sequence[Checkpoint]) -> str:
    """Why the run must wait that says it continues another; ``made`` is its ``own``."""
    uid = run.metadata.annotations.get(CONTINUES, "")
    if not uid or made:
        return ""
    model, name = run.spec.model_ref.name, run.metadata.name
    return (
        f"metadata.annotations: {CONTINUES} is {uid[:64]!r}, and no Checkpoint of {model} is of a "
        f"run {name} of that uid. Bring the Checkpoints back (espalier adopt --model {model}), set "
        "it to one that their annotation espalier.dev/run-uid has, or take it off to begin at "
        "step 0"
    )
