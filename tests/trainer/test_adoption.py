"""A directory of checkpoints comes back as objects after the namespace was lost."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.core.objects import model
from tests.trainer import tiny
from tests.trainer.test_fork import train
from tests.trainer.tiny import Volume
from typer.testing import CliRunner

from espalier.api.wire.commits import Commit
from espalier.cli.main import app
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs.adoption import survey
from espalier.trainer.jobs.collector import collect
from espalier.trainer.volume.checkpoint_store import CheckpointStore

# Answers `get` from files below $CLUSTER and keeps what it is told to create.
KUBECTL = """#!{python}
import json, os, sys
given, root = sys.argv[1:], os.environ["CLUSTER"]
if "get" in given:
    print(open(f"{{root}}/{{given[given.index('get') + 1]}}.json").read())
elif "create" in given:
    with open(f"{{root}}/created", "a") as created:
        created.write(sys.stdin.read() + "\\n")
"""


def grown(engine: Engine) -> list[Commit]:
    """Three steps, and two on a branch of the first."""
    train(engine, range(3))
    first = engine.state.commits[0]
    engine.assign(
        tiny.assignment(
            2, branch="b2", base=first.digest, base_name=first.name, base_step=first.step
        )
    )
    train(engine, range(3, 5))
    return engine.state.commits


def surveyed(volume: Volume, of: str = "arith", base: str = "") -> tuple[list[Commit], list[str]]:
    lines = list(survey(CheckpointStore(volume.path, of), of, base))
    commits = [Commit.model_validate(line["commit"]) for line in lines if "commit" in line]
    return commits, [line["refused"] for line in lines if "refused" in line]


def without_origin(commit: Commit) -> dict[str, Any]:
    """All but where a commit stood in the log, what the log counted up to it, and when it was
    written."""
    return commit.model_dump(exclude={"index", "created", "run_tokens"})


def directory(volume: Volume, commit: Commit) -> Path:
    return volume.path / "checkpoints" / "arith" / commit.digest.replace(":", "-")


def test_the_volume_holds_everything_that_the_trainers_log_had(
    engine: Engine, volume: Volume
) -> None:
    made = grown(engine)
    shutil.rmtree(volume.path / "models")
    found, strays = surveyed(volume, base=volume.base)
    by_digest = {commit.digest: without_origin(commit) for commit in found}
    assert by_digest == {commit.digest: without_origin(commit) for commit in made}
    assert strays == []
    assert surveyed(volume, "other") == ([], [])


def test_torn_damaged_and_foreign_directories_are_reported_and_left_out(
    engine: Engine, volume: Volume
) -> None:
    made = grown(engine)
    (directory(volume, made[0]) / "manifest.json").unlink()
    weights = directory(volume, made[1]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (volume.path / "checkpoints" / "arith" / ".tmp-0.arith").mkdir()
    (volume.path / "checkpoints" / "notes.txt").write_text("mine")
    found, strays = surveyed(volume)
    assert [commit.name for commit in found if commit.digest in {c.digest for c in made[:2]}] == []
    assert len(found) == 3
    assert len(strays) == 4
    assert any("never finished" in why for why in strays)
    assert any("corrupt" in why for why in strays)
    assert surveyed(volume, base=f"sha256:{'0' * 64}")[0] == []


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for a cluster in which only the model was applied again."""
    root = tmp_path_factory.mktemp("cluster")
    kubectl = root / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    applied = model("arith")
    body = {"metadata": {"name": "arith"}, "spec": applied.spec.wire()}
    (root / "trainablemodels.espalier.dev.json").write_text(json.dumps(body))
    (root / "checkpoints.espalier.dev.json").write_text('{"items": []}')
    monkeypatch.setenv("PATH", f"{root}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(root))
    return root


def test_adopt_makes_the_checkpoints_that_the_operator_had_made(
    engine: Engine, volume: Volume, cluster: Path
) -> None:
    made = grown(engine)
    # What retention took away stays away.
    collect(
        CheckpointStore(volume.path, "arith", "collector"),
        "arith",
        [made[1].digest],
        orphaned=False,
    )
    arguments = ["-n", "ns", "adopt", "--model", "arith", "--volume", str(volume.path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "4 adopted, 0 were there, 0 left out" in done.output
    (listed,) = [json.loads(line) for line in (cluster / "created").read_text().splitlines()]
    found = {item["metadata"]["name"]: item for item in listed["items"]}
    assert list(found) == ["arith-000001", "arith-b2-000002", "arith-000003", "arith-b2-000003"]
    branched = found["arith-b2-000002"]
    assert branched["spec"]["parentRef"] == {"name": "arith-000001"}
    assert branched["spec"]["digest"] == made[3].digest
    assert branched["metadata"]["namespace"] == "ns"

    (cluster / "checkpoints.espalier.dev.json").write_text(json.dumps(listed))
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(again.output)["adopted"] == []
    assert len(json.loads(again.output)["present"]) == 4
    assert len((cluster / "created").read_text().splitlines()) == 1
