"""A whole life of every kind on a real API server: kubectl's waits, and who wrote which field."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from dev.apiserver import ApiServer
from tests.kstatus.compute import CURRENT, IN_PROGRESS, compute
from tests.simulation.kubelet import RESOLVED
from tests.simulation.servers import ROLLOUT_IP, TRAINER_IP, Servers, serving
from tests.simulation.test_process import Stage, has_reason, is_current, stage
from tests.simulation.world import head_spec, model_spec, run_spec

__all__ = ["stage"]

OUT = Path(__file__).resolve().parents[2] / "out" / "managed-fields"
OURS = "trainablemodels,trainingruns,checkpointheads,checkpoints"
USER = "kubectl"
OPERATOR, STATUS = "espalier", "espalier-status"


async def test_an_object_that_nobody_has_looked_at_is_in_progress(
    apiserver: ApiServer, namespace: str
) -> None:
    kinds = {
        "TrainableModel": model_spec(),
        "TrainingRun": run_spec("tiny", 1),
        "CheckpointHead": head_spec("tiny", "Track"),
    }
    items = [
        {"apiVersion": "espalier.dev/v1alpha1", "kind": kind, "metadata": {"name": "tiny"}, **body}
        for kind, spec in kinds.items()
        for body in [{"spec": spec}]
    ]
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    apiserver.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=content)
    listed = json.loads(apiserver.kubectl("get", OURS, "-n", namespace, "-o", "json"))["items"]
    assert {body["kind"]: compute(body) for body in listed} == dict.fromkeys(kinds, IN_PROGRESS)


async def test_kubectl_waits_end_and_the_operator_owns_no_field_of_a_user(
    apiserver: ApiServer, stage: Stage, namespace: str
) -> None:
    servers = Servers(namespace, "tiny", await stage.keys())

    async def kubectl(*arguments: str) -> str:
        return await asyncio.to_thread(apiserver.kubectl, *arguments, "-n", namespace)

    async with serving(servers):
        await stage.apply("CheckpointHead", "tiny", head_spec("tiny", "Track"))
        early = await stage.until("CheckpointHead", "tiny", has_reason("ModelNotFound"))
        assert compute(early) == IN_PROGRESS
        await stage.apply("TrainableModel", "tiny", model_spec())
        await stage.apply("TrainingRun", "digits", run_spec("tiny", 2, driver="Client"))
        await stage.play("importer", "127.77.0.1", RESOLVED)
        await stage.play("rollout", ROLLOUT_IP, by=servers)
        await kubectl("wait", "checkpointhead/tiny", "--for=condition=Ready", "--timeout=150s")
        await stage.play("trainer", TRAINER_IP, by=servers)
        await kubectl("wait", "trainingrun/digits", "--for=condition=Ready", "--timeout=150s")
        for step in (1, 2):
            await servers.trainer.step("tiny")
            await stage.until("CheckpointHead", "tiny", is_current(f"tiny-{step:06d}"))
        await kubectl("wait", "trainingrun/digits", "--for=condition=Succeeded", "--timeout=150s")
        for edit in (
            head_spec("tiny", "Pin", "tiny-000001", onPin="Pause"),
            head_spec("tiny", "Pin", "tiny-000001", onPin="Branch"),
            head_spec("tiny", "Track"),
        ):
            await stage.apply("CheckpointHead", "tiny", edit)
            name = edit.get("checkpointRef", {}).get("name", "tiny-000001")
            served = f"--for=jsonpath={{.status.current.name}}={name}"
            await kubectl("wait", "checkpointhead/tiny", served, "--timeout=150s")
        await stage.apply("CheckpointHead", "canary", head_spec("tiny", "Pin", "tiny-000002"))
        await kubectl("wait", "checkpointhead/canary", "--for=condition=Ready", "--timeout=150s")
        await kubectl("wait", OURS, "--all", "--for=condition=Ready", "--timeout=150s")

    objects = json.loads(await kubectl("get", OURS, "-o", "json", "--show-managed-fields"))["items"]
    assert {compute(body) for body in objects} == {CURRENT}
    wrong = [fault for body in objects for fault in trespasses(body)]
    OUT.mkdir(parents=True, exist_ok=True)
    text = await kubectl("get", OURS, "-o", "yaml", "--show-managed-fields")
    (OUT / "objects.yaml").write_text(text)
    (OUT / "owners.txt").write_text("".join(f"{line}\n" for o in objects for line in owners(o)))
    assert wrong == []


def entries(body: dict[str, Any]) -> list[tuple[str, set[str]]]:
    """Each manager of an object and the top-level fields in which it owns something."""
    managed = body["metadata"]["managedFields"]
    return [(entry["manager"], set(entry["fieldsV1"])) for entry in managed]


def trespasses(body: dict[str, Any]) -> list[str]:
    """What a manager owns that is not its own to write."""
    mine = {STATUS: {"f:status"}}
    # Checkpoints are the operator's; of a user's object it may own finalizers, and nothing else.
    if body["kind"] == "Checkpoint":
        mine[OPERATOR] = {"f:metadata", "f:spec"}
    else:
        mine[USER] = {"f:spec"}
    name = f"{body['kind']} {body['metadata']['name']}"
    found = [
        f"{name}: {manager} owns {sorted(fields)}"
        for manager, fields in entries(body)
        if not fields <= mine.get(manager, set()) and not _only_finalizers(body, manager)
    ]
    if body["kind"] != "Checkpoint" and USER not in dict(entries(body)):
        found.append(f"{name}: the user owns nothing any more")
    return found


def _only_finalizers(body: dict[str, Any], manager: str) -> bool:
    held = [e for e in body["metadata"]["managedFields"] if e["manager"] == manager]
    return all(
        set(entry["fieldsV1"]) == {"f:metadata"}
        and set(entry["fieldsV1"]["f:metadata"]) == {"f:finalizers"}
        for entry in held
    )


def owners(body: dict[str, Any]) -> list[str]:
    """One line for each manager of an object."""
    name = f"{body['kind']} {body['metadata']['name']}"
    return [f"{name:40} {manager:16} {' '.join(sorted(f))}" for manager, f in entries(body)]
