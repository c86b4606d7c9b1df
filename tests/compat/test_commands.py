"""HUD's command line against a gateway of ours; its transcript is an artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from tests.compat.clients import EACH_VERSION, NEWEST, OUT, environment, run
from tests.compat.stage import NAMESPACE, TRAINER, Stage

from espalier.core.gitowner import ARGO_TRACKING
from espalier.gateway.access.offers import Offers
from espalier.kube.objects import ObjectKey

pytestmark = pytest.mark.timeout(900)

COMMANDS = Path(__file__).with_name("commands.py")
BATCH = {
    "inputs": [
        {
            "samples": [
                {"prompt_token_ids": [1], "output_token_ids": [2], "output_logprobs": [-5.0]}
            ],
            "reward": reward,
        }
        for reward in (0.0, 1.0)
    ],
    "group_size": 2,
}


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> object:
        return json.loads(self.output)


async def commands(
    stage: Stage, version: str, home: Path, *listed: str
) -> tuple[dict[str, Ran], str]:
    """What each command did, and all of it as a transcript."""
    variables = environment(stage.url, TRAINER, home)
    split = [command.split() for command in listed]
    done = await run(version, [str(COMMANDS), json.dumps(split)], variables)
    assert done.code == 0, done.errors[-3000:]
    results, transcript = {}, []
    for line in done.output.splitlines():
        arguments, *rest = json.loads(line)
        results[" ".join(arguments)] = Ran(*rest)
        said = "".join(part for part in rest[1:])
        transcript.append(f"$ hud {' '.join(arguments)}\n{said}[{rest[0]}]\n")
    return results, "\n".join(transcript).replace(stage.url, "http://gateway")


async def two_steps(stage: Stage) -> None:
    headers = {"Authorization": f"Bearer {TRAINER}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in "12":
            for command, body in (
                ("forward-backward", BATCH),
                ("optim-step", {"learning_rate": 1e-3}),
            ):
                url = f"{stage.url}/v1/models/arith/train/{command}"
                async with session.post(url, json=body) as reply:
                    assert reply.status == 200, await reply.text()


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_every_command_of_hud_models_works(
    stage: Stage, table: dict[str, dict[str, str]], version: str, tmp_path: Path
) -> None:
    await two_steps(stage)
    fork = "models fork arith --name arith-two"
    # The older ones do not ask, and know no --yes.
    yes = " --yes" if version == NEWEST else ""
    unasked = (fork,) if yes else ()
    ran, transcript = await commands(
        *(stage, version, tmp_path),
        *("models list", "models list -q", "models list --json"),
        *(f"{fork} --dry-run --json", *unasked, f"{fork}{yes}", f"{fork}{yes} --json"),
        *(f"{fork} --if-not-exists{yes} --json", f"models fork arith --name Arith_2{yes}"),
        *("models checkpoints arith", "models checkpoints arith -q"),
        *("models checkpoints arith --json", "models head arith", "models head arith-two --json"),
        *("models head arith --set arith-000001 --dry-run", f"models head arith --set nix{yes}"),
        *(f"models head arith --set arith-000001{yes}", "models head arith --json"),
        "models head arth",
    )
    codes = {command: done.code for command, done in ran.items() if done.code}
    assert codes == {
        **dict.fromkeys(unasked, 2),
        f"{fork}{yes} --json": 1,
        f"models fork arith --name Arith_2{yes}": 1,
        f"models head arith --set nix{yes}": 1,
        "models head arth": 2,
    }
    assert ran["models list -q"].output == "arith\n"
    assert ran["models checkpoints arith -q"].output == "arith-000001\narith-000002\n"
    assert ran[f"{fork}{yes} --json"].document == {
        "error": "conflict",
        "input": {"name": "arith-two", "source": "arith"},
        "message": "Request failed: model default/arith-two exists. Choose another name, or use "
        "it as it is",
    }
    existed = ran[f"{fork} --if-not-exists{yes} --json"].document
    assert isinstance(existed, dict)
    assert existed["existed"] is True
    assert "such as arith-2" in ran[f"models fork arith --name Arith_2{yes}"].errors
    assert "Did you mean: arith" in ran["models head arth"].errors
    moved = ran["models head arith --json"].document
    assert isinstance(moved, dict)
    assert moved["head"]["id"] == "arith-000001"
    # A fork stands on what its source served when it was made.
    await stage.training("arith-two")
    assert stage.engine("arith-two").state.position.name == "arith-000002"
    table.setdefault(version, {}).update(
        {f"hud {command}": f"exits {done.code}" for command, done in ran.items()}
    )
    if version == NEWEST:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "hud-models.txt").write_text(transcript)


async def test_a_base_of_the_catalogue_is_forked_by_its_name_and_trained(
    stage: Stage, tmp_path: Path
) -> None:
    spec = stage.body("TrainableModel", "arith")["spec"]
    offer = {"name": "Qwen/Qwen3-4B", "namespace": NAMESPACE, "spec": spec}
    stage.offers = Offers.read(json.dumps([offer]), (NAMESPACE,))
    await stage.stop_gateway()
    await stage.start_gateway()
    ran, _ = await commands(
        *(stage, NEWEST, tmp_path, "models list --json"),
        *("models fork Qwen/Qwen3-4B --name mine --yes --json", "models list -q"),
    )
    listed, forked, after = ran.values()
    assert isinstance(listed.document, list)
    shown = {model["model_name"]: model["is_trainable"] for model in listed.document}
    assert shown == {"Qwen/Qwen3-4B": True, "arith": True}
    made = stage.body("TrainableModel", "mine")["spec"]
    assert forked.code == 0
    assert all(made[field] == spec[field] for field in ("source", "adapter", "storage"))
    assert stage.body("TrainingRun", "mine")["spec"] == {
        "modelRef": {"name": "mine"},
        "driver": "Client",
        "steps": 10_000_000,
    }
    assert after.output == "arith\nmine\nQwen/Qwen3-4B\n"
    await stage.training("mine")
    # The base itself is no model: who samples or trains it is told to fork it.
    headers = {"Authorization": f"Bearer {TRAINER}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        url = f"{stage.url}/v1/models/Qwen/Qwen3-4B/train/losses"
        async with session.get(url) as reply:
            told = await reply.json()
    assert reply.status == 404
    assert "hud models fork Qwen/Qwen3-4B --name NAME" in told["remedy"]


async def test_a_head_that_git_owns_is_left_to_git(stage: Stage, tmp_path: Path) -> None:
    await two_steps(stage)
    key = ObjectKey("CheckpointHead", NAMESPACE, "arith")
    mark = {ARGO_TRACKING: "team:espalier.dev/CheckpointHead:default/arith"}
    before = stage.cluster.edit(key, lambda body: body["metadata"].update(annotations=mark))
    ran, _ = await commands(stage, NEWEST, tmp_path, "models head arith --set arith-000001 --yes")
    (done,) = ran.values()
    assert done.code == 1
    said = " ".join(done.errors.split())
    assert "Git owns the head default/arith through Argo CD (team)" in said
    assert "spec.checkpointRef.name: arith-000001" in said
    assert stage.cluster.objects[key]["spec"] == before["spec"]
