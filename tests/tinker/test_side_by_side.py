"""The page "Side by side": its four listings run as they stand, and end in the same weights."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.compat import clients
from tests.compat.stage import NAMESPACE, TRAINER, Stage
from tests.runner.around import surroundings
from tests.tinker import sdk
from tests.tinker.conftest import BASE, SPEC
from tests.tinker.test_training import trained
from tests.user_clients import PATIENCE_SECONDS, ROOT

from espalier.client import GatewayClient
from espalier.core.volume import checkpoints_of, directory_name
from espalier.gateway.access.offers import Offers
from espalier.runner.journal import Journal
from espalier.runner.loop import Loop
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_taskset
from espalier.runner.waiting import Waiting
from espalier.trainer.volume.peft_adapter import WEIGHTS

pytestmark = pytest.mark.timeout(900)
PAGE = (ROOT / "docs" / "guides" / "side-by-side.md").read_text()
ADAPTER = {"type": "LoRA", "rank": 4, "alpha": 32}
# Answers of three digits that are 1 or 2: a sampler that draws them is right one time in eight.
DIGITS = b"12"
TASKS = "\n".join(
    json.dumps({"prompt": f"{n}=", "answer": str(111 + n // 2 % 2 * 10 + n % 2)}) for n in range(8)
)


def listing(heading: str) -> str:
    """The code below a heading of the page."""
    section = PAGE.partition(f"## {heading}\n")[2]
    found = re.search(r"```\w+\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(listing("kubectl")))


async def test_four_ways_end_in_the_same_weights(stage: Stage, key: str, tmp_path: Path) -> None:
    offer = {"name": BASE, "namespace": NAMESPACE, "spec": SPEC | {"adapter": ADAPTER}}
    stage.offers = Offers.read(json.dumps([offer]), (NAMESPACE,))
    await stage.stop_gateway()
    await stage.start_gateway()

    stage.alphabet = DIGITS
    steps = await _by_kubectl(stage, tmp_path)
    (tmp_path / "rollouts.json").write_text(json.dumps(steps))
    hud = await clients.script(
        clients.NEWEST,
        _file(tmp_path, "HUD's client"),
        clients.environment(stage.url, TRAINER, tmp_path),
    )
    done = await sdk.run(
        sdk.NEWEST,
        # Nobody is shown what the SDK will remove.
        sdk.environment(stage.url, key, tmp_path) | {"PYTHONWARNINGS": "error:DEPRECATED"},
        str(_file(tmp_path, "Tinker's client")),
    )
    assert done.code == 0, done.errors[-3000:]
    ours = await _ours(stage, tmp_path)

    made = {
        "kubectl": ["by-kubectl-000001", "by-kubectl-000002"],
        "hud": json.loads(hud),
        "tinker": [_saved(stage, path) for path in json.loads(done.output)],
        "ours": json.loads(ours),
    }
    found = {way: [_weights(stage, name) for name in names] for way, names in made.items()}
    first, second = found["kubectl"]
    assert first != second
    assert found == {
        "kubectl": [first, second],
        "hud": [first, second, second],
        "tinker": [first, second, second],
        "ours": [first, second, second],
    }
    whole = [_spec(stage, name)["digest"] for names in made.values() for name in names]
    assert len(set(whole)) == len(whole)


async def _by_kubectl(stage: Stage, home: Path) -> list[list[dict[str, Any]]]:
    """Applies the manifests; what the run trained on, step by step."""
    model, run, pin, fork = manifests()
    tasks = home / "tasks"
    tasks.mkdir()
    (tasks / "tasks.jsonl").write_text(TASKS)
    config = {"metadata": {"name": "digits", "namespace": NAMESPACE}}
    await stage.cluster.apply(
        "ConfigMap", config | {"data": {"tasks.jsonl": TASKS}}, manager="kubectl"
    )
    for one in (model, run):
        await stage.apply(one["kind"], one["metadata"]["name"], one["spec"])
    await stage.training("by-kubectl")
    await _drive(stage, tasks)
    sent = [body for command, body in stage.commands if command == "forward-backward"]
    await stage.until(lambda: stage.body("Checkpoint", "by-kubectl-000002"), "the second step")
    await stage.apply(pin["kind"], pin["metadata"]["name"], pin["spec"])
    await stage.apply(fork["kind"], fork["metadata"]["name"], fork["spec"])
    again = {**run["spec"], "modelRef": {"name": "fork-by-kubectl"}, "steps": 1}
    await stage.apply("TrainingRun", "fork-by-kubectl", again)
    await stage.training("fork-by-kubectl")
    return [[_rollout(one) for one in json.loads(body)["inputs"]] for body in sent]


def _rollout(payload: dict[str, Any]) -> dict[str, Any]:
    (sample,) = payload["samples"]
    return {
        "prompt": sample["prompt_token_ids"],
        "tokens": sample["output_token_ids"],
        "logprobs": sample["output_logprobs"],
        "reward": payload["reward"],
    }


async def _drive(stage: Stage, tasks: Path) -> None:
    """What the runner's pod does."""
    journal = Journal(f"{NAMESPACE}/by-kubectl")
    async with GatewayClient(stage.url, f"{NAMESPACE}/by-kubectl", TRAINER) as client:
        loop = Loop(
            client,
            (NAMESPACE, "by-kubectl"),
            open_tasks=lambda taskset: open_taskset(taskset, tasks),
            open_rewards=lambda spec, tasks: open_rewards(spec, tasks, surroundings()),
            journal=journal,
            waiting=Waiting(journal, poll_seconds=0.05),
        )
        await loop.drive()


async def _ours(stage: Stage, home: Path) -> str:
    model, _, _, fork = manifests()
    run = {"driver": "Client", "steps": 100}
    origin = {"checkpointRef": {"name": "by-python-000001", "optimizerState": "Keep"}}
    specs = {"by-python": model["spec"], "fork-by-python": fork["spec"] | {"source": origin}}
    for name, spec in specs.items():
        await stage.apply("TrainableModel", name, spec)
        await stage.apply("TrainingRun", name, run | {"modelRef": {"name": name}})
    await stage.training("by-python")
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "operator"),
        "ESPALIER_GATEWAY_URL": stage.url,
        "ESPALIER_TOKEN": TRAINER,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(_file(home, "Ours"))),
        env=variables,
        cwd=home,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 0
    return output.decode()


def _file(home: Path, heading: str) -> Path:
    path = home / f"{heading.partition(' ')[0].strip(chr(39)).lower()}_listing.py"
    path.write_text(listing(heading))
    return path


def _spec(stage: Stage, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = stage.body("Checkpoint", name)["spec"]
    return spec


def _weights(stage: Stage, name: str) -> str:
    """The digest of a checkpoint's weights alone."""
    spec = _spec(stage, name)
    folder = checkpoints_of(stage.volume, spec["modelRef"]["name"])
    directory = folder / directory_name(spec["digest"])
    digest: str = json.loads((directory / "manifest.json").read_text())["files"][WEIGHTS]["sha256"]
    return digest


def _saved(stage: Stage, path: str) -> str:
    """The Checkpoint that has weights saved under a path of Tinker's."""
    key = path.removeprefix("tinker://")
    model = trained(key.partition("/")[0])
    names: Sequence[str] = [
        one.name
        for one, body in stage.cluster.objects.items()
        if one.kind == "Checkpoint" and key in json.dumps(body.get("status", {}))
    ]
    (name,) = names
    assert name.startswith(model)
    return name
