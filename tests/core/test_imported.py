"""An adapter from outside is the Checkpoint of step 0, from which training goes on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import checkpoint, commit, digest, model

from espalier.api.checkpoint import Checkpoint
from espalier.api.source import Resolved
from espalier.core.checkpoints import commits, imported
from espalier.core.lineage.lineage import Point, root_of
from espalier.core.lineage.lineage_index import grow

SOURCE = {"base": {"image": "registry.example/tiny:1"}, "adapter": {"image": "r.example/lora:1"}}
KNOWN = {
    "uri": "file:///weights/bases/b",
    "digest": digest("base"),
    "adapter": {"digest": digest("adapter"), "sizeBytes": 7},
}
ROOT = Point("m-000000", 0, digest("adapter"))


def own(body: Any) -> Checkpoint:
    return Checkpoint.model_validate(body)


def test_the_tree_of_such_a_model_starts_at_its_adapter_once_it_is_known() -> None:
    assert root_of(model(source=SOURCE), None) is None
    assert root_of(model(source=SOURCE, status={"resolved": KNOWN}), None) == ROOT


def test_its_checkpoint_is_one_that_the_tree_takes_and_training_extends() -> None:
    subject = model(source=SOURCE, status={"resolved": KNOWN})
    lineage = grow([], root_of(subject, None))
    made = own(imported.root(subject, subject.status.resolved, lineage))
    assert (made.metadata.name, made.spec.step, made.spec.parent_ref) == ("m-000000", 0, None)
    assert (made.spec.digest, made.spec.size_bytes, made.spec.lora_rank) == (ROOT.digest, 7, 16)
    grown = grow([made], ROOT)
    assert not grown.faults
    assert grown.newest("main") == ROOT
    first = commit(1).model_copy(update={"parent": ROOT.digest, "parent_name": ROOT.name})
    for tree in (lineage, grown):
        assert commits.judge(first, "m", tree, None) == commits.Accepted(ROOT)
    assert isinstance(commits.judge(commit(1), "m", grown, None), commits.Fenced)


@pytest.mark.parametrize(
    ("resolved", "own_checkpoints"),
    [
        (None, []),
        ({**KNOWN, "adapter": None}, []),
        # Of an earlier model of this name, or of a root that someone deleted.
        (KNOWN, [checkpoint(step=3)]),
    ],
)
def test_no_checkpoint_is_made_without_an_adapter_or_beside_a_tree(
    resolved: dict[str, Any] | None, own_checkpoints: list[Checkpoint]
) -> None:
    found = Resolved.model_validate(resolved) if resolved else None
    assert imported.root(model(source=SOURCE), found, grow(own_checkpoints, None)) is None
