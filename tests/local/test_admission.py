"""``espalier dev`` refuses what the API server refuses: the cases are those of its own tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.api.cases import BAD, CHANGES, FREE, GOOD
from tests.api.manifests import CHECKPOINT, HEAD, MODEL, RUN, Manifest, edited

from espalier.kube.objects import Body, ObjectKey, key_of
from espalier.local.admission import refusals
from espalier.local.layout import NAMESPACE
from espalier.local.manifests import SPECS, ManifestError, read

STORED = [{**o, "metadata": {**o["metadata"], "namespace": NAMESPACE}} for o in (MODEL, RUN, HEAD)]


def ours(cases: dict[str, Any], of: int | None = None) -> Any:
    """Those of the kinds that a user declares; nobody writes a Checkpoint into a directory."""
    bodies = {name: case if of is None else case[of] for name, case in cases.items()}
    chosen = [name for name, body in bodies.items() if body["kind"] in SPECS]
    return pytest.mark.parametrize("case", [cases[name] for name in chosen], ids=chosen)


def taken(directory: Path, body: Manifest, *stored: Body) -> None:
    (directory / "object.yaml").write_text(json.dumps(body))
    by_key: dict[ObjectKey, Body] = {key_of(old["kind"], old): old for old in stored}
    read(directory, by_key)


def without_queues(value: Any) -> Any:
    """A manifest less its ``queueName``s: there is no queue on one machine."""
    if isinstance(value, dict):
        return {name: without_queues(v) for name, v in value.items() if name != "queueName"}
    return [without_queues(v) for v in value] if isinstance(value, list) else value


@ours(GOOD)
def test_takes(tmp_path: Path, case: Manifest) -> None:
    taken(tmp_path, without_queues(case))


@ours(BAD, of=0)
def test_refuses(tmp_path: Path, case: tuple[Manifest, str, Any, str, str]) -> None:
    good, path, value, field, remedy = case
    spoilt = edited(good, path, value)
    with pytest.raises(ManifestError) as caught:
        taken(tmp_path, spoilt)
    # A rule says it in the same words; the rest is said by the types.
    if any(not refusal.undecided for refusal in refusals(spoilt, None)):
        assert field in str(caught.value)
        assert remedy in str(caught.value)


@ours(FREE)
def test_takes_a_change(tmp_path: Path, case: Manifest) -> None:
    taken(tmp_path, case, *STORED)


@ours(CHANGES, of=0)
def test_refuses_a_change(tmp_path: Path, case: tuple[Manifest, str, Any, str]) -> None:
    good, path, value, remedy = case
    with pytest.raises(ManifestError) as caught:
        taken(tmp_path, edited(good, path, value), *STORED)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("case", [c for c in CHANGES.values() if c[0]["kind"] == "Checkpoint"])
def test_rules_are_those_of_every_kind(case: tuple[Manifest, str, Any, str]) -> None:
    good, path, value, remedy = case
    (refusal, *_) = refusals(edited(good, path, value), CHECKPOINT)
    assert remedy in refusal.message
