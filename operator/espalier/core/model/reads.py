"""Whose checkpoints a model's pods may read: its own, and those that it says it needs of others.

A fork needs the checkpoint that it starts from, and its trainer the one that the run whose turn it
is names in ``kl.reference``. On the volume each lies in the folder of its model, and such a folder
is mounted as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from espalier.api.model.status import MOST_READS, Read
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.core.pods.pods import Pod
from espalier.core.volume import FOLDERS, checkpoints_of


def named(model: TrainableModel, runs: Sequence[TrainingRun]) -> tuple[str, ...]:
    """The Checkpoints that a model and these runs of it name, of whichever model."""
    references = (run.spec.kl.reference for run in runs)
    held = [reference.checkpoint_ref for reference in references if reference is not None]
    found = (ref.name for ref in (model.spec.source.checkpoint_ref, *held) if ref is not None)
    return tuple(dict.fromkeys(found))


def of(model: TrainableModel, names: Sequence[str], models: Mapping[str, str]) -> list[Read]:
    """Those of the Checkpoints that are another model's, and whose; the first of too many.

    Args:
        model: with the status before, which says whose a Checkpoint was that is gone by now. Its
            bytes stay as long as it is named.
        names: of the Checkpoints, those that are needed now first.
        models: the model of each of these Checkpoints that there is.
    """
    known = {read.checkpoint: read.model for read in model.status.reads} | {**models}
    found = [Read(checkpoint=name, model=known[name]) for name in names if name in known]
    return [read for read in found if read.model != model.metadata.name][:MOST_READS]


def sees(pod: Pod, found: Sequence[Read]) -> bool:
    """Whether a pod mounts all of that; one that was made for another run may not."""
    shared = FOLDERS["checkpoint"]
    if shared in pod.parts:
        # Made by a version before, it sees those of all models.
        return True
    return {str(checkpoints_of(Path(), read.model)) for read in found} <= pod.parts


def folders(found: Sequence[Read], names: Sequence[str]) -> tuple[str, ...]:
    """The other models whose folders have the Checkpoints of these names."""
    return tuple(sorted({read.model for read in found if read.checkpoint in names}))
