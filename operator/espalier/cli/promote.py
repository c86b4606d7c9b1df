"""``espalier promote``: commits a pin of the head for a checkpoint that passed its gate.

Each attempt reads the head from the newest commit and decides again, so that two users who promote
at once cannot undo each other: the second one gets an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from espalier.api.checkpoint import Checkpoint
from espalier.cli.failure import CliError
from espalier.cli.git import PushRejectedError, WorkingTree
from espalier.cli.head_manifest import HeadManifest, HeadManifestError, heads
from espalier.core.head import promotion
from espalier.core.lineage import measurements

ATTEMPTS = 5


class CheckpointReader(Protocol):
    """Reads the Checkpoints of a namespace."""

    def checkpoint(self, name: str) -> Checkpoint:
        """The Checkpoint of this name."""

    def checkpoints(self, model: str) -> Sequence[Checkpoint]:
        """The Checkpoints of a model."""


# By the namespace that a manifest declares; empty if it leaves the namespace open.
Namespaces = Callable[[str], CheckpointReader]


@dataclass(frozen=True)
class Wish:
    """What to promote; empty fields mean the only head, and the newest checkpoint that passed."""

    head: str = ""
    checkpoint: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """The commit that pins the head; empty if the head was pinned there already."""

    head: str
    checkpoint: str
    path: Path
    commit: str
    pushed: bool = False


def promote(tree: WorkingTree, namespaces: Namespaces, wish: Wish, *, push: bool) -> Outcome:
    """Commits the pin and pushes it.

    Raises:
        CliError: nothing was committed, or it was not pushed; says why.
    """
    if not push:
        return _attempt(tree, namespaces, wish)[0]
    upstream = tree.upstream()
    seen: str | None = None
    for _ in range(ATTEMPTS):
        outcome, seen = _attempt(tree, namespaces, wish, seen)
        try:
            tree.push(upstream)
        except PushRejectedError:
            if outcome.commit:
                tree.undo_commit()
            tree.update(upstream)
        else:
            return replace(outcome, pushed=True)
    raise CliError(
        f"{upstream.tracking} moved {ATTEMPTS} times meanwhile: nothing was promoted; try again"
    )


def _attempt(
    tree: WorkingTree, namespaces: Namespaces, wish: Wish, seen: str | None = None
) -> tuple[Outcome, str]:
    """Commits the pin on the newest commit; also returns what the head was pinned to before.

    ``seen`` is what an earlier attempt found there.
    """
    path, manifest = _find(tree, wish)
    if seen is not None and manifest.pin != seen:
        raise CliError(
            f"meanwhile {manifest.name} was {_held(manifest)} by someone else: nothing was "
            "committed; promote again to replace that"
        )
    checkpoint = _choose(namespaces(manifest.namespace), manifest, wish.checkpoint)
    commit = _commit(tree, path, manifest, checkpoint)
    return Outcome(manifest.name, checkpoint.metadata.name, path, commit), manifest.pin


def _find(tree: WorkingTree, wish: Wish) -> tuple[Path, HeadManifest]:
    """The file of the head, with its text in the last commit."""
    paths = [wish.path] if wish.path is not None else tree.manifests()
    matching = []
    for path in paths:
        for manifest in _read(tree, path, explicit=wish.path is not None):
            if wish.head in ("", manifest.name):
                matching.append((path, manifest))
    if len(matching) == 1:
        path, manifest = matching[0]
        if tree.is_edited(path):
            raise CliError(f"{path} has changes that are not committed: commit or stash them")
        return path, manifest
    what = f"CheckpointHead {wish.head}" if wish.head else "CheckpointHead"
    if not matching:
        where = wish.path or f"the YAML files of {tree.path}"
        raise CliError(f"there is no {what} in {where}: name the file with --path")
    listed = ", ".join(f"{manifest.name} in {path}" for path, manifest in matching)
    raise CliError(f"there are several: {listed}. Choose with --head or --path")


def _read(tree: WorkingTree, path: Path, *, explicit: bool) -> list[HeadManifest]:
    file = tree.path / path
    try:
        # As bytes: Python would turn the line ends of other systems into its own.
        return heads(file.read_bytes().decode())
    except FileNotFoundError as error:
        raise CliError(f"{path} is not in {tree.path}") from error
    except (HeadManifestError, UnicodeDecodeError) as error:
        if explicit:
            raise CliError(f"{path}: {error}") from error
        # Templates and files of others may be anything.
        return []


def _choose(known: CheckpointReader, manifest: HeadManifest, name: str) -> Checkpoint:
    try:
        if not name:
            model = manifest.spec.model_ref.name
            return promotion.newest(manifest.spec, known.checkpoints(model))
        chosen = known.checkpoint(name)
        promotion.check(manifest.spec, chosen)
    except promotion.PromotionRefusedError as error:
        raise CliError(f"{manifest.name}: {error}") from error
    return chosen


def _commit(tree: WorkingTree, path: Path, manifest: HeadManifest, checkpoint: Checkpoint) -> str:
    """The new commit; empty when the head is pinned there already."""
    name = checkpoint.metadata.name
    if manifest.pin == name:
        return ""
    try:
        text = manifest.pinned(name)
    except HeadManifestError as error:
        raise CliError(f"{path}: {error}") from error
    file = tree.path / path
    file.write_bytes(text.encode())
    try:
        return tree.commit(path, message(manifest, checkpoint))
    except CliError:
        file.write_bytes(manifest.text.encode())
        raise


def message(manifest: HeadManifest, checkpoint: Checkpoint) -> str:
    """The commit's message: the model, the checkpoint, and the metric that it was chosen by."""
    gate = manifest.spec.gate
    assert gate is not None  # or it would have been refused
    name, value = checkpoint.metadata.name, measurements.value(checkpoint, gate.metric)
    return (
        f"Pin {manifest.name} to {name}\n\n"
        f"{gate.metric} {value} passes the gate of {gate.min}; the head was "
        f"{_held(manifest)} before.\n\n"
        f"Model: {checkpoint.spec.model_ref.name}\n"
        f"Checkpoint: {name}\n"
        f"Digest: {checkpoint.spec.digest}\n"
    )


def _held(manifest: HeadManifest) -> str:
    return f"pinned to {manifest.pin}" if manifest.pin else "tracking"
