"""What a person sees: kubectl get, field selectors, kubectl explain."""

from __future__ import annotations

import re

import pytest
from dev.apiserver import ApiServer
from tests.api.manifests import CHECKPOINT, HEAD, MODEL, RUN, apply, edited, named, write_status

from espalier.api.crds import KINDS, Kind

NAMESPACE = "test-reading"
READY = {
    "type": "Ready",
    "status": "True",
    "reason": "Training",
    "message": "step 3 of 20",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
REWARD = [
    {"name": "loss/sum", "value": "-1.5"},
    {"name": "reward/mean", "value": "0.61"},
    {"name": "rollout/reward/mean", "value": "0.58"},
]


@pytest.fixture(scope="module")
def tree(apiserver: ApiServer) -> ApiServer:
    """A model with a run, a head and two checkpoints, with statuses as the operator writes them."""
    apiserver.create_namespace(NAMESPACE)
    second = edited(
        named(CHECKPOINT, "arith-b2-000002"), "spec.parentRef", {"name": "arith-000001"}
    )
    second = edited(edited(second, "spec.step", 2), "spec.branch", "b2")
    other = edited(named(CHECKPOINT, "other-000001"), "spec.modelRef.name", "other")
    apply(apiserver, NAMESPACE, MODEL, RUN, HEAD, CHECKPOINT, second, other)
    status = {"observedGeneration": 1, "conditions": [READY], "metrics": REWARD}
    write_status(apiserver, NAMESPACE, "trun", "arith", {**status, "step": 3, "term": 2})
    marked = {**status, "heads": ["arith"], "headMark": "> arith"}
    write_status(apiserver, NAMESPACE, "ckpt", "arith-b2-000002", marked)
    current = {"name": "arith-b2-000002", "step": 2, "term": 2}
    head = {"conditions": [READY], "current": current, "latest": {"name": "arith-b2-000002"}}
    write_status(apiserver, NAMESPACE, "ckhead", "arith", {**head, "term": 2})
    progress = {"doneBytes": 1, "totalBytes": 4, "bytesPerSecond": 1, "percent": 25}
    model = {"conditions": [READY], "tree": {"checkpoints": 2}, "importProgress": progress}
    model["source"] = "registry.example/model:1"
    write_status(apiserver, NAMESPACE, "tmodel", "arith", model)
    return apiserver


def table(server: ApiServer, *arguments: str) -> list[list[str]]:
    """The cells of kubectl get, split at the columns of its header; the age is left out of rows."""
    lines = server.kubectl("get", "-n", NAMESPACE, *arguments).splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", lines[0])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows = [[line[a:b].strip() for a, b in spans] for line in lines]
    age = rows[0].index("AGE")
    return [rows[0], *([*row[:age], *row[age + 1 :]] for row in rows[1:])]


def test_checkpoints_read_as_a_tree(tree: ApiServer) -> None:
    assert table(tree, "checkpoints", "-l", "!x", "--sort-by=.metadata.name")[:3] == [
        ["NAME", "STEP", "PARENT", "BRANCH", "REWARD", "HEAD", "READY", "AGE"],
        ["arith-000001", "1", "", "main", "", "", ""],
        ["arith-b2-000002", "2", "arith-000001", "b2", "0.61", "> arith", "True"],
    ]


def test_a_run_shows_its_progress_and_reward(tree: ApiServer) -> None:
    assert table(tree, "trun") == [
        ["NAME", "READY", "STATUS", "STEP", "STEPS", "REWARD", "AGE"],
        ["arith", "True", "Training", "3", "20", "0.58"],
    ]


def test_a_head_shows_what_it_serves(tree: ApiServer) -> None:
    assert table(tree, "ckhead") == [
        ["NAME", "READY", "STATUS", "MODE", "CURRENT", "LATEST", "TERM", "AGE"],
        ["arith", "True", "Training", "Track", "arith-b2-000002", "arith-b2-000002", "2"],
    ]


def test_a_model_shows_its_checkpoints(tree: ApiServer) -> None:
    assert table(tree, "tmodel") == [
        ["NAME", "READY", "STATUS", "CHECKPOINTS", "AGE"],
        ["arith", "True", "Training", "2"],
    ]


def test_wide_tables_add_the_details(tree: ApiServer) -> None:
    run, model = table(tree, "trun", "-o", "wide"), table(tree, "tmodel", "-o", "wide")
    assert run[0][7:] == ["MODEL", "LR", "LOSS", "TERM", "MESSAGE"]
    assert run[1][6:] == ["arith", "1e-4", "importance_sampling", "2", "step 3 of 20"]
    assert model[0][5:] == ["SOURCE", "IMPORT%", "MESSAGE"]
    assert model[1][4:] == ["registry.example/model:1", "25", "step 3 of 20"]
    assert table(tree, "ckpt", "-o", "wide")[0][8:] == ["MODEL", "RUN", "TERM", "DIGEST"]


@pytest.mark.parametrize(
    ("resource", "selector", "found"),
    [
        ("ckpt", "spec.modelRef.name=other", ["other-000001"]),
        ("ckpt", "spec.branch=b2", ["arith-b2-000002"]),
        ("ckpt", "spec.modelRef.name=arith,spec.branch=main", ["arith-000001"]),
        ("ckpt", "spec.runRef.name=nobody", []),
        ("trun", "spec.modelRef.name=arith", ["arith"]),
        ("ckhead", "spec.modelRef.name=other", []),
    ],
)
def test_field_selectors_find(
    tree: ApiServer, resource: str, selector: str, found: list[str]
) -> None:
    names = tree.kubectl(
        *("get", resource, "-n", NAMESPACE, f"--field-selector={selector}"),
        *("-o", "jsonpath={.items[*].metadata.name}"),
    )
    assert names.split() == found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_explain_describes_every_field(apiserver: ApiServer, kind: Kind) -> None:
    for part in ("spec", "status"):
        text = apiserver.kubectl("explain", f"{kind.short_name}.{part}", "--recursive=false")
        fields = re.split(r"\n  (?=\w+\t)", text.partition("FIELDS:")[2])[1:]
        assert len(fields) == len(getattr(kind, part).model_fields)
        for field in fields:
            name, _, rest = field.partition("\t")
            description = " ".join(rest.splitlines()[1:])
            assert name in description, f"{kind.name}.{part}.{name} has no description"


def test_explain_shows_the_losses_to_choose_from(apiserver: ApiServer) -> None:
    text = " ".join(apiserver.kubectl("explain", "trainingrun.spec.loss").split())
    assert "importance_sampling, ppo, cispo, dro, gspo" in text
