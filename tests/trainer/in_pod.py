"""What runs with the mounts of a pod's container, as a manifest says them: in a namespace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.kube.children import Body
from tests.trainer.test_real_volume import in_namespace, mount


def mounted(container: Body, claim: Path, place: Path) -> None:
    """Mounts what a container sees of a claim, as a kubelet does."""
    for entry in container["volumeMounts"]:
        if entry["name"] == "weights" and entry["mountPath"].startswith("/weights"):
            target = place / entry["mountPath"].removeprefix("/weights").lstrip("/")
            target.mkdir(parents=True, exist_ok=True)
            mount("--bind", str(claim / entry.get("subPath", "")), str(target))
            if entry.get("readOnly"):
                mount("-o", "remount,bind,ro", str(target))


def in_container(container: Body, claim: Path, place: Path, body: Callable[[], None]) -> None:
    """Runs ``body`` in a process that finds the container's parts of the claim at ``place``."""

    def work() -> None:
        mounted(container, claim, place)
        body()

    in_namespace(work)


def told(container: Body, volume: Path) -> dict[str, str]:
    """The container's variables, of a volume that is mounted elsewhere."""
    given = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    return {**given, "ESPALIER_VOLUME": str(volume)}


def seen_of(place: Path) -> dict[str, set[str]]:
    """What lies in each folder of a mounted volume."""
    return {part.name: {path.name for path in part.iterdir()} for part in place.iterdir()}
