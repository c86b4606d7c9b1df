"""The same verbs in HUD's command line and in ours, on one tree; the transcripts are an artifact.

HUD's goes through the gateway of the stage, ours through kubectl and a real API server that holds
the same objects.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dev.apiserver import ApiServer
from tests.cli.test_cluster_commands import apply, espalier
from tests.compat.clients import NEWEST, OUT
from tests.compat.stage import NAMESPACE, Stage
from tests.compat.test_commands import commands, two_steps

from espalier.api.meta import API_VERSION

__all__ = ["espalier"]
pytestmark = pytest.mark.timeout(900)

KINDS = ("TrainableModel", "TrainingRun", "CheckpointHead", "Checkpoint")
VERBS = (
    "models list",
    "models list -q",
    "models checkpoints arith",
    "models checkpoints arith -q",
    "models head arith",
    "models fork arith --name arith-two --dry-run",
    "models fork arith --name arith-two --yes",
    "models fork arith --name arith-two --yes --json",
    "models head arith --set arith-000001 --dry-run",
    "models head arith --set arith-000001",
    "models head arith --set arith-000001 --yes",
    "models head arth",
)
FAILS = {VERBS[7], VERBS[9], VERBS[11]}
COPIED = ("name", "labels", "annotations")


def copy(stage: Stage, server: ApiServer, namespace: str) -> None:
    """The user's objects and the tree, as the stage has them."""
    found = [(key.kind, body) for key, body in stage.cluster.objects.items() if key.kind in KINDS]
    for kind, body in sorted(found, key=lambda entry: KINDS.index(entry[0])):
        assert body["metadata"]["namespace"] == NAMESPACE
        metadata = {name: body["metadata"][name] for name in COPIED if name in body["metadata"]}
        manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata}
        apply(server, namespace, manifest | {k: body[k] for k in ("spec", "status") if k in body})


async def test_both_command_lines_tell_the_same_of_the_same_tree(
    stage: Stage, apiserver: ApiServer, namespace: str, espalier: Any, tmp_path: Path
) -> None:
    await two_steps(stage)
    copy(stage, apiserver, namespace)
    theirs, _ = await commands(stage, NEWEST, tmp_path, *VERBS)
    ours = {verb: espalier(*verb.split()) for verb in VERBS}
    assert {verb for verb, done in theirs.items() if done.code} == FAILS
    assert {verb for verb, done in ours.items() if done.exit_code} == FAILS
    for verb in ("models list -q", "models checkpoints arith -q"):
        assert ours[verb].output == theirs[verb].output
    refusal = VERBS[7]
    assert json.loads(ours[refusal].output)["error"] == "conflict"
    assert theirs[refusal].document["error"] == "conflict"  # type: ignore[index]
    page = []
    for verb in VERBS:
        done = theirs[verb]
        page += [
            f"## {verb}\n",
            f"```\n$ hud {verb}\n{done.output}{done.errors}[{done.code}]\n```\n",
            f"```\n$ kubectl espalier {verb}\n{ours[verb].output}[{ours[verb].exit_code}]\n```\n",
        ]
    OUT.mkdir(parents=True, exist_ok=True)
    text = "\n".join(page).replace(stage.url, "http://gateway").replace(namespace, NAMESPACE)
    (OUT / "side-by-side.md").write_text(text)
