"""What becomes of the objects of a directory."""

from __future__ import annotations

from pathlib import Path

from tests.core.objects import NOW

from espalier.core.gitowner import git_owner
from espalier.kube.objects import ObjectKey
from espalier.local.manifests import read
from espalier.local.memory_apiserver import MemoryCluster
from espalier.local.server import apply

EXAMPLE = Path(__file__).parents[2] / "examples/arithmetic"


async def test_a_run_of_a_directory_would_be_made_again_and_bears_the_mark_of_it() -> None:
    """So that ttlSecondsAfterFinished leaves it, as it leaves one of Argo CD."""
    cluster = MemoryCluster(lambda: NOW)
    await apply(cluster, read(EXAMPLE, {}), EXAMPLE, lambda said: None)
    run = await cluster.get(ObjectKey("TrainingRun", "default", "arith-20"))
    model = await cluster.get(ObjectKey("TrainableModel", "default", "arith"))
    assert run is not None
    assert model is not None
    assert str(git_owner(run["metadata"])) == f"espalier dev ({EXAMPLE})"
    # Its default head is not waited for.
    assert git_owner(model["metadata"]) is None
