"""The parts of a model's volume that its pods see, and the container that makes them before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espalier.api.podtemplate import BOUNDED, PodTemplate, Resources
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.labels import FOLDERS_CONTAINER
from espalier.core.manifests.pod import VOLUME_PATH, Container, Mount, Requests, claim, part
from espalier.core.volume import FOLDERS, base_directory, checkpoints_of, log_of

_REQUESTS = Requests("50m", "64Mi")
_COMMAND = ("python", "-m", "espalier.trainer.jobs.folders")
_BASES = Path(FOLDERS["base"])


def to_sample(model: TrainableModel, base: str, others: Sequence[str]) -> tuple[Mount, ...]:
    """A sampler's part: the base, and the checkpoints of the model and of others, to be read."""
    names = (model.metadata.name, *others)
    return (_base(model, base), *(_checkpoints(model, name) for name in names))


def to_train(model: TrainableModel, base: str, others: Sequence[str]) -> tuple[Mount, ...]:
    """A trainer's part: a sampler's, of which it writes its own checkpoints, and its log."""
    name = model.metadata.name
    return (
        _base(model, base),
        *(_checkpoints(model, other) for other in others),
        part(model, checkpoints_of(Path(), name)),
        part(model, log_of(Path(), name)),
    )


def to_scrub(model: TrainableModel) -> tuple[Mount, ...]:
    """A scrubber's part: bases, of which its own may be missing, and the model's checkpoints."""
    return (part(model, _BASES, read_only=True), _checkpoints(model, model.metadata.name))


def folders_container(
    model: TrainableModel,
    image: str,
    template: PodTemplate | None,
    *,
    base: str = "",
    others: Sequence[str] = (),
    writes: bool = False,
) -> Container:
    """Makes what the pod mounts, and looks for the base; it sees the whole volume, and ends.

    ``writes``: that the pod will write its own part is tried as well.
    """
    env = {"ESPALIER_VOLUME": VOLUME_PATH, "ESPALIER_MODEL": model.metadata.name}
    if base:
        env["ESPALIER_BASE"] = base
    if others:
        env["ESPALIER_READS"] = ",".join(others)
    if writes:
        env["ESPALIER_WRITES"] = "true"
    return Container(
        name=FOLDERS_CONTAINER,
        image=image,
        requests=_REQUESTS,
        env={**env},
        mounts=(claim(model),),
        command=_COMMAND,
        resources=_without_devices(template),
    )


def _base(model: TrainableModel, base: str) -> Mount:
    return part(model, base_directory(Path(), base), read_only=True)


def _checkpoints(model: TrainableModel, of: str) -> Mount:
    return part(model, checkpoints_of(Path(), of), read_only=True)


def _without_devices(template: PodTemplate | None) -> Resources | None:
    """As the pod's own, for a quota counts every container; its GPUs wait for it alone."""
    given = template.resources if template else None
    if given is None:
        return None
    return Resources(
        requests={name: q for name, q in given.requests.items() if name in BOUNDED},
        limits={name: q for name, q in given.limits.items() if name in BOUNDED},
    )
