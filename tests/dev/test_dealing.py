"""How the tests are dealt out to two workers."""

from __future__ import annotations

import os

import pytest
from tests import dealing

FILES = sorted(dealing.TESTS.rglob("test_*.py"))


def group(folder: str, file: str, *, vllm: bool = False) -> str:
    return dealing.group(dealing.TESTS / folder / file, vllm=vllm)


def test_a_file_is_a_group() -> None:
    assert group("core", "test_head.py") == "core/test_head"


def test_files_that_share_what_is_heavy_are_one_group() -> None:
    assert {group("gitops", f"test_{tool}.py") for tool in ("flux", "argocd")} == {"gitops"}
    assert group("local", "test_dev.py", vllm=True) == group("gateway", "test_vllm.py", vllm=True)


def test_long_groups_are_begun_first_and_the_cluster_after_what_computes_much() -> None:
    groups = ["core/test_head", "e2e", "trainer/test_full", "trainer/test_ranks", "vllm"]
    assert sorted(groups, key=dealing.turn) == [
        "vllm",
        "trainer/test_ranks",
        "trainer/test_full",
        "e2e",
        "core/test_head",
    ]


def test_every_entry_of_the_order_is_of_tests_that_exist() -> None:
    groups = {dealing.group(path, vllm=False) for path in FILES} | {dealing.VLLM}
    for start in dealing.ORDER:
        assert any(name.startswith(start) for name in groups), start


def test_the_tests_of_a_group_follow_one_another(request: pytest.FixtureRequest) -> None:
    """In one process as in two workers, so that a service is started once either way."""
    seen: list[str] = []
    for item in request.session.items:
        marker = item.get_closest_marker("xdist_group")
        assert marker is not None, item.nodeid
        if not seen or seen[-1] != marker.args[0]:
            seen.append(marker.args[0])
    assert len(seen) == len(set(seen))


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="pytest runs in one process")
def test_a_worker_computes_in_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1
