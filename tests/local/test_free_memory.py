"""How much memory this machine has for pods, and what a pod asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.local.free_memory import GIB, Memory, asked, of_this_machine
from espalier.local.quantity import number


def meminfo(directory: Path, available_kb: int) -> Path:
    file = directory / "meminfo"
    file.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available_kb} kB\n")
    return file


def cgroup(directory: Path, limit: str) -> Path:
    (directory / "memory.max").write_text(limit)
    (directory / "memory.current").write_text("700")
    (directory / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    return directory


def test_without_a_container_what_the_machine_has_counts(tmp_path: Path) -> None:
    file = meminfo(tmp_path, 3)
    assert of_this_machine(file, tmp_path / "none").free == 3 * 1024
    assert of_this_machine(file, cgroup(tmp_path, "max")).free == 3 * 1024


def test_a_containers_limit_counts_less_what_it_cannot_give_back(tmp_path: Path) -> None:
    assert of_this_machine(meminfo(tmp_path, 3), cgroup(tmp_path, "1000")).free == 500


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({"requests": {"memory": "1.5Gi"}}, 3 * GIB // 2),
        ({"requests": {"memory": "2G"}}, 2 * 10**9),
        ({"requests": {"memory": "1000"}}, 1000),
        ({"requests": {"cpu": "1"}, "limits": {"memory": "1Ki"}}, 1024),
        ({"requests": {"cpu": "1"}}, 0),
        (None, 0),
    ],
)
def test_a_pod_asks_for_its_request_or_as_kubernetes_has_it_for_its_limit(
    resources: dict[str, dict[str, str]] | None, wanted: int
) -> None:
    assert asked({"containers": [{"resources": resources}]}) == wanted


def test_what_stays_beside_a_container_is_added_and_what_prepares_it_is_not() -> None:
    def container(gib: int, **more: str) -> dict[str, object]:
        return {"resources": {"requests": {"memory": f"{gib}Gi"}}, **more}

    beside = container(2, restartPolicy="Always")
    assert asked({"initContainers": [beside], "containers": [container(1)]}) == 3 * GIB
    before = container(2)
    assert asked({"initContainers": [before], "containers": [container(1)]}) == 2 * GIB
    assert asked({"initContainers": [beside, before], "containers": [container(1)]}) == 4 * GIB


def test_exactly_what_is_left_is_enough() -> None:
    room = Memory(3 * GIB)
    assert room.shortage(GIB, 2 * GIB) == ""
    assert "it asks for 1.0 GiB" in room.shortage(GIB + 1, 2 * GIB)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("500m", 0.5), ("100u", 1e-4), ("100n", 1e-7)),
        *(("1e3", 1000.0), ("1E3", 1000.0), ("5e-1", 0.5), ("1k", 1e3), ("1E", 1e18)),
        *(("1Ei", 2.0**60), ("1.5Gi", 1.5 * GIB)),
    ],
)
def test_a_quantity_is_what_kubernetes_takes_it_for(text: str, value: float) -> None:
    assert number(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", ".", "-1", "1 GB", "1mi", "1e", "e3"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        number(text)
