"""Tinker's own command line, unmodified: every subcommand, as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.compat.stage import Stage
from tests.tinker.conftest import BASE
from tests.tinker.scenarios import drive
from tests.tinker.sdk import NEWEST, environment, run
from tests.tinker.test_training import trained

from espalier.core.volume import checkpoints_of, directory_name
from espalier.tinker.commands import ADAPTER_FILES

pytestmark = pytest.mark.timeout(900)
SCRIPT = Path(__file__).with_name("commands.py")


@dataclass(frozen=True)
class Done:
    """A command line that has ended."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output)
        return found


@dataclass(frozen=True)
class Shell:
    """A user's shell."""

    variables: dict[str, str]

    async def call(self, *lines: str) -> list[Done]:
        """What each of these command lines comes to, one after the other."""
        given = json.dumps([line.split() for line in lines])
        done = await run(NEWEST, self.variables, str(SCRIPT), given)
        assert done.code == 0, done.errors[-4000:]
        return [Done(**json.loads(line)) for line in done.output.splitlines()]


async def test_every_group_of_commands_works_or_is_refused_by_name(
    stage: Stage, key: str, tmp_path: Path
) -> None:
    told = await drive(stage.url, key, tmp_path, "saves", base=BASE)
    model, state, named = told["model"], told["state"], told["named"]
    shell = Shell(environment(stage.url, key, tmp_path) | {"COLUMNS": "240"})

    runs, run_, both, one, models = await shell.call(
        "-f json run list",
        f"-f json run info {model}",
        f"-f json checkpoint list --run-id {model}",
        f"-f json checkpoint info {state}",
        "-f json model list tiny",
    )
    (listed,) = runs.document["runs"]
    assert (listed["training_run_id"], listed["base_model"]) == (model, BASE)
    assert run_.document["last_checkpoint"]["tinker_path"] == state
    assert {c["tinker_path"] for c in both.document["checkpoints"]} == {state, named}
    assert (one.document["is_lora"], one.document["lora_rank"]) == (True, 4)
    assert one.document["size_bytes"] > 0
    assert models.document["models"][0]["model_name"] == BASE

    tables = await shell.call(
        "run list --columns id,owner,checkpoint --limit 0",
        f"run info {model}",
        "checkpoint list --limit 1",
        f"checkpoint info {named}",
        "model list",
        "version",
    )
    assert [done.code for done in tables] == [0] * len(tables), tables
    for done, part in zip(
        tables,
        (state.rpartition("/")[2], "OK", "1 more not shown", "Sampler", BASE, NEWEST),
        strict=True,
    ):
        assert part.lower() in done.output.lower(), done

    loaded, again = await shell.call(
        f"checkpoint download {state} -o got", f"checkpoint download {state} -o got"
    )
    assert (loaded.code, again.code) == (0, 1), loaded
    assert "Target directory already exists" in again.errors
    got = tmp_path / "got" / state.removeprefix("tinker://").replace("/", "_")
    digest = stage.body("Checkpoint", f"{trained(model)}-000001")["spec"]["digest"]
    kept = checkpoints_of(stage.volume, trained(model)) / directory_name(digest)
    for file in ADAPTER_FILES:
        assert (got / file).read_bytes() == (kept / file).read_bytes()
    (served,) = {t.model for t in stage.trainers.values()} - {trained(model)}
    assert stage.body("TrainableModel", served)["spec"]["rollout"]["replicas"] == 0

    lasts, lives, unpublished, gone, left = await shell.call(
        f"checkpoint set-ttl {state} --ttl 7200",
        f"checkpoint set-ttl {state} --remove",
        f"checkpoint unpublish {state}",
        f"-f json checkpoint delete {named} --yes",
        "-f json checkpoint list",
    )
    assert [done.code for done in (lasts, lives, unpublished)] == [0, 0, 0]
    assert gone.document == {"deleted_count": 1, "failed": []}
    assert [c["tinker_path"] for c in left.document["checkpoints"]] == [state]
    assert left.document["checkpoints"][0]["expires_at"] is None

    refused = {
        f"checkpoint publish {state}": "weights are never public here",
        f"session export-trace {model.partition(':')[0]}": "is not served here",
        f"checkpoint info {named}": "Checkpoint not found",
        "run info default.gone": "names nothing here",
        "model list nonsense": "whoami requires JWT auth",
    }
    for done, says in zip(await shell.call(*refused), refused.values(), strict=True):
        assert (done.code, says in done.errors) == (1, True), done
