"""How the tests are dealt out to three workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from tests import dealing

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
WORKER = re.compile(r"\[(gw\d)\].* PASSED (\S+)")


def test_a_file_is_a_group() -> None:
    assert dealing.group("tests/core/test_head.py::test_a[x/y::z]") == "core/test_head"


def test_files_that_share_what_is_heavy_are_one_group() -> None:
    assert dealing.group("tests/gitops/test_flux.py::test_a") == "gitops"
    assert dealing.group("tests/gitops/test_argocd.py::test_b[20]") == "gitops"


def test_long_groups_are_begun_first_and_the_cluster_after_what_computes_much() -> None:
    files = ["core/test_head", "e2e/test_01_train", "trainer/test_full", "trainer/test_ranks"]
    files.append("local/test_dev")
    assert sorted(files, key=lambda name: dealing.turn(f"tests/{name}.py")) == [
        "local/test_dev",
        "trainer/test_ranks",
        "trainer/test_full",
        "e2e/test_01_train",
        "core/test_head",
    ]


def test_every_name_of_a_group_or_of_the_order_is_of_tests_that_exist() -> None:
    groups = {dealing.group(file) for file in FILES}
    for start in dealing.ORDER:
        assert any(name.startswith(start) for name in groups), start
    assert groups.issuperset(dealing.WAIT)
    for start in (start for starts in dealing.TOGETHER.values() for start in starts):
        assert any(file.startswith(f"tests/{start}") for file in FILES), start


def test_every_test_that_starts_vllm_is_of_the_group_that_has_them(
    request: pytest.FixtureRequest,
) -> None:
    marked = [item for item in request.session.items if item.get_closest_marker("vllm")]
    assert [i.nodeid for i in marked if dealing.group(i.nodeid) != "vllm"] == []


def test_the_tests_of_a_group_follow_one_another(request: pytest.FixtureRequest) -> None:
    """In one process as in three workers, so that a service is started once either way."""
    groups = [dealing.group(item.nodeid) for item in request.session.items]
    begun = [name for n, name in enumerate(groups) if n == 0 or groups[n - 1] != name]
    assert len(begun) == len(set(begun))


def test_workers_share_the_groups_none_is_torn_and_the_third_has_what_waits() -> None:
    names = ("conditions", "lineage_index", "reported", "drawn_tree")
    files = [f"tests/core/test_{name}.py" for name in names]
    files.append("tests/gitops/test_customizations.py")
    command = [sys.executable, "-m", "pytest", "-n", "3", "-v", "-p", "no:cacheprovider", *files]
    # With a user's own options it might tell less.
    own = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240, check=True
    )
    workers = defaultdict(set)
    for worker, nodeid in WORKER.findall(done.stdout):
        workers[dealing.group(nodeid)].add(worker)
    assert len(workers) == len(files)
    assert all(len(of) == 1 for of in workers.values()), workers
    assert len(set.union(*workers.values())) > 1
    assert workers["gitops"] == {dealing.WAITING_WORKER}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="pytest runs in one process")
def test_a_worker_computes_in_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1
