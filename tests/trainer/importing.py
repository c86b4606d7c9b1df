"""Bases and adapters as an import puts them on a volume, without what it checks before."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from espalier.api.model.adapter import Adapter
from espalier.trainer.engine import imported_adapter
from espalier.trainer.jobs import importer, place
from espalier.trainer.volume.checkpoint_store import CheckpointStore, Stored
from espalier.trainer.volume.shapes import State


def import_directory(store: CheckpointStore, source: Path, chat_template: str = "") -> Stored:
    """The model in a directory as a base."""
    with store.staging("base") as staged:
        importer.copy_directory(staged, source, chat_template)
        return place.place_base(store, staged)


def import_adapter(
    store: CheckpointStore, source: Path, adapter: Adapter, *, model: str, base: str
) -> Stored:
    """The adapter in a directory as a model's step 0."""
    known = store.verify("base", base).path
    with TemporaryDirectory(dir=store.root) as staged:
        modules = importer.convert_adapter(Path(staged), source, adapter, known)
        return place.place_adapter(store, Path(staged), modules, adapter, model=model, base=base)


def commit_adapter(
    store: CheckpointStore, parameters: State, adapter: Adapter, *, model: str, base: str
) -> Stored:
    """An adapter's weights as a model's step 0."""
    with TemporaryDirectory(dir=store.root) as staged:
        modules = imported_adapter.write_tensors(Path(staged), parameters)
        return place.place_adapter(store, Path(staged), modules, adapter, model=model, base=base)
