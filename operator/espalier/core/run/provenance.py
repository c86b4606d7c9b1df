"""What a run is made from, as far as the cluster tells.

Argo CD and Flux keep Git's revision in their own objects. Argo CD can write it on those that it
applies as well, as a common annotation.
"""

from __future__ import annotations

from espalier.api.run.status import ImageUsed, Provenance
from espalier.core.gitowner import GIT_REVISION, GIT_REVISION_CHARACTERS
from espalier.core.run.run_view import RunView
from espalier.core.volume import canonical_json, digest_of


def provenance(view: RunView) -> Provenance:
    """The spec and base of now; and the images that ran last, also once their pods are gone."""
    old = view.run.status.provenance
    resolved = view.model.status.resolved if view.model is not None else None
    known = {image.role: image.digest for image in old.images} if old is not None else {}
    images = known | dict(view.images)
    revision = view.run.metadata.annotations.get(GIT_REVISION, "")[:GIT_REVISION_CHARACTERS]
    return Provenance(
        config_digest=digest_of(canonical_json(view.run.spec.wire())),
        model_digest=resolved.digest if resolved is not None else (old and old.model_digest),
        git_revision=revision or None,
        images=[ImageUsed(role=role, digest=digest) for role, digest in sorted(images.items())],
    )
