"""Kept rollouts as a sampler reads them from the volume: in pages, and verified."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.sampler.tiny import commit_checkpoint

from espalier.api.wire.rollout_control import KEPT_ROLLOUTS
from espalier.sampler import kept_rollouts
from espalier.sampler.kept_rollouts import FILE, KeptRollouts
from espalier.sampler.verified_store import VerifiedCheckpoints

BASE = "sha256:" + "b" * 64
RECORDS = [{"completion": text} for text in ("one", "two  lines\nand\u2028more", "three")]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def name(volume: Path, tmp_path: Path) -> str:
    """A committed checkpoint with three records."""
    source = tmp_path / "step"
    source.mkdir()
    (source / FILE).write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return f"arith@{commit_checkpoint(volume, source, BASE, rank=4)[7:19]}"


def ask(volume: Path, **query: Any) -> tuple[int, dict[str, Any]]:
    kept = KeptRollouts(VerifiedCheckpoints(volume, BASE))
    client = TestClient(Starlette(routes=[Route(KEPT_ROLLOUTS, kept.get)]))
    answer = client.get(KEPT_ROLLOUTS, params=query)
    body: dict[str, Any] = answer.json()
    return answer.status_code, body


def test_all_records_come_in_their_order(volume: Path, name: str) -> None:
    assert ask(volume, checkpoint=name) == (200, {"records": RECORDS, "total": 3, "next": None})


def test_a_page_ends_at_its_bytes_and_says_where_to_go_on(
    volume: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_rollouts, "PAGE_BYTES", 30)
    found, after = [], 0
    for _ in RECORDS:
        _, page = ask(volume, checkpoint=name, after=after)
        assert len(page["records"]) == 1
        found += page["records"]
        after = page["next"] or 0
    assert (found, after) == (RECORDS, 0)
    assert ask(volume, checkpoint=name, after=7)[1]["records"] == []


def test_records_that_were_altered_are_refused(volume: Path, name: str) -> None:
    (file,) = volume.rglob(FILE)
    file.write_text('{"completion": "another"}\n')
    status, problem = ask(volume, checkpoint=name)
    assert (status, problem["reason"]) == (404, "FileAltered")


def test_records_that_are_altered_while_they_are_read_are_refused(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "long"
    source.mkdir()
    # More than is read at once.
    lines = (json.dumps({"completion": name * 2**20}) for name in "abc")
    (source / FILE).write_text("\n".join(lines))
    name = f"arith@{commit_checkpoint(volume, source, BASE, rank=4)[7:19]}"
    (file,) = volume.rglob(FILE)
    page = kept_rollouts.page_of

    def altered_meanwhile(read: Iterable[bytes], after: int) -> bytes:
        given = iter(read)
        first = next(given)
        file.write_bytes(file.read_bytes().replace(b"c", b"d"))
        return page([first, *given], after)

    monkeypatch.setattr(kept_rollouts, "page_of", altered_meanwhile)
    status, problem = ask(volume, checkpoint=name)
    assert (status, problem["reason"]) == (404, "FileAltered")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"checkpoint": "arith@../../etc/pa"}, 404),
        ({"checkpoint": "arith@000000000000"}, 404),
        ({"checkpoint": ""}, 404),
        ({"after": "-1"}, 422),
        ({"after": "x"}, 422),
    ],
)
def test_what_names_no_checkpoint_or_no_place_is_refused(
    volume: Path, name: str, query: dict[str, str], status: int
) -> None:
    assert ask(volume, **({"checkpoint": name} | query))[0] == status
