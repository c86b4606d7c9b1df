"""The parts of a model's volume that its pods see, and the container that makes them before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espalier.api.podtemplate import BOUNDED, PodTemplate, Resources
from espalier.api.trainablemodel import TrainableModel
from espalier.core.manifests.labels import FOLDERS_CONTAINER
from espalier.core.manifests.pod import VOLUME_PATH, Container, Mount, Requests, claim, part
from espalier.core.volume import FOLDERS, base_directory, checkpoints_of, imports_of, log_of

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
        part(claim(model), checkpoints_of(Path(), name)),
        part(claim(model), log_of(Path(), name)),
    )


def to_scrub(model: TrainableModel) -> tuple[Mount, ...]:
    """A scrubber's part: bases, of which its own may be missing, and the model's checkpoints."""
    bases = part(claim(model), _BASES, read_only=True)
    return (bases, _checkpoints(model, model.metadata.name))


def to_import(model: TrainableModel) -> tuple[Mount, ...]:
    """An importer's part: what it has brought so far, and nothing of anybody's."""
    return (part(claim(model), imports_of(Path(), model.metadata.name)),)


def to_place(model: TrainableModel) -> tuple[Mount, ...]:
    """The part of what puts an import in place: bases, and where an adapter's checkpoint goes."""
    bases = part(claim(model), _BASES)
    if model.spec.source.adapter is None:
        return (bases,)
    return (bases, part(claim(model), checkpoints_of(Path(), model.metadata.name)))


def to_collect(whole: Mount, name: str, *, orphaned: bool) -> tuple[Mount, ...]:
    """A collector's part: the model's checkpoints, and its log, to be removed with the model."""
    log = part(whole, log_of(Path(), name), read_only=not orphaned)
    return (part(whole, checkpoints_of(Path(), name)), log)


def folders_container(
    whole: Mount,
    name: str,
    image: str,
    template: PodTemplate | None,
    *,
    base: str = "",
    others: Sequence[str] = (),
    writes: bool = False,
    imports: bool = False,
) -> Container:
    """Makes what a pod of a model mounts, and looks for the base; it sees the ``whole``, and ends.

    ``writes``: that the pod will write its own part is tried as well; ``imports``: it is an
    importer's.
    """
    env = {"ESPALIER_VOLUME": VOLUME_PATH, "ESPALIER_MODEL": name}
    if base:
        env["ESPALIER_BASE"] = base
    if others:
        env["ESPALIER_READS"] = ",".join(others)
    if writes:
        env["ESPALIER_WRITES"] = "true"
    if imports:
        env["ESPALIER_IMPORTS"] = "true"
    return Container(
        name=FOLDERS_CONTAINER,
        image=image,
        requests=_REQUESTS,
        env={**env},
        mounts=(whole,),
        command=_COMMAND,
        resources=_without_devices(template),
    )


def _base(model: TrainableModel, base: str) -> Mount:
    return part(claim(model), base_directory(Path(), base), read_only=True)


def _checkpoints(model: TrainableModel, of: str) -> Mount:
    return part(claim(model), checkpoints_of(Path(), of), read_only=True)


def _without_devices(template: PodTemplate | None) -> Resources | None:
    """As the pod's own, for a quota counts every container; its GPUs wait for it alone."""
    given = template.resources if template else None
    if given is None:
        return None
    return Resources(
        requests={name: q for name, q in given.requests.items() if name in BOUNDED},
        limits={name: q for name, q in given.limits.items() if name in BOUNDED},
    )
