"""How the tests are dealt out to two workers."""

from __future__ import annotations

import os

import pytest
from tests import dealing

FILES = sorted(dealing.TESTS.rglob("test_*.py"))


def test_every_entry_of_the_order_is_of_tests_that_exist() -> None:
    names = [path.relative_to(dealing.TESTS).as_posix() for path in FILES]
    for start in dealing.ORDER:
        assert any(name.startswith(start) for name in names), start


def test_a_group_is_begun_at_one_place_of_the_order() -> None:
    turns: dict[str, set[int]] = {}
    for path in FILES:
        turns.setdefault(dealing.group(path), set()).add(dealing.turn(path))
    assert {name: found for name, found in turns.items() if len(found) > 1} == {}


def test_files_that_share_what_is_heavy_are_one_group() -> None:
    groups = {dealing.group(dealing.TESTS / "gitops" / f"test_{n}.py") for n in ("flux", "argocd")}
    assert groups == {"gitops"}
    assert dealing.group(dealing.TESTS / "core" / "test_head.py") == "core/test_head"


def test_every_test_has_a_group(request: pytest.FixtureRequest) -> None:
    """Also when it runs in one process, so that both ways have the same order."""
    for item in request.session.items:
        assert item.get_closest_marker("xdist_group") is not None, item.nodeid


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="pytest runs in one process")
def test_a_worker_computes_in_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1
