"""A model's source in a word, for the column of ``kubectl get``."""

from __future__ import annotations

from espalier.api.source import Base
from espalier.api.trainablemodel import TrainableModel

# Enough of a commit to tell it from others.
REVISION_CHARS = 7


def in_a_word(model: TrainableModel) -> str:
    """The checkpoint that it forks from, or its base and adapter."""
    source = model.spec.source
    if source.checkpoint_ref is not None:
        return source.checkpoint_ref.name
    found = [_base(base) for base in (source.base, source.adapter) if base is not None]
    return " + ".join(found)


def _base(base: Base) -> str:
    if base.hugging_face is not None:
        return f"{base.hugging_face.repository}@{base.hugging_face.revision[:REVISION_CHARS]}"
    if base.persistent_volume_claim is not None:
        claim = base.persistent_volume_claim
        return "/".join(filter(None, (claim.claim_name, claim.path)))
    return base.image or ""
