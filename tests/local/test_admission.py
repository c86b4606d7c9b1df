"""``espalier dev`` refuses what the API server refuses: the cases are those of its own tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.api.cases import BAD, CHANGES, FREE, GOOD
from tests.api.manifests import CHECKPOINT, HEAD, MODEL, RUN, Manifest, edited

from espalier.api.podtemplate import BOUNDED, PodTemplate
from espalier.kube.objects import Body, ObjectKey, key_of
from espalier.local.admission import refusals
from espalier.local.layout import NAMESPACE
from espalier.local.manifests import SPECS, ManifestError, read
from espalier.local.one_machine import OF_CLUSTERS

STORED = [{**o, "metadata": {**o["metadata"], "namespace": NAMESPACE}} for o in (MODEL, RUN, HEAD)]


def ours(cases: dict[str, Any], of: int | None = None) -> Any:
    """Those of the kinds that a user declares; nobody writes a Checkpoint into a directory."""
    bodies = {name: case if of is None else case[of] for name, case in cases.items()}
    chosen = [name for name, body in bodies.items() if body["kind"] in SPECS]
    return pytest.mark.parametrize("case", [cases[name] for name in chosen], ids=chosen)


def taken(directory: Path, body: Manifest, *stored: Body) -> None:
    (directory / "object.yaml").write_text(json.dumps(body))
    by_key: dict[ObjectKey, Body] = {key_of(old["kind"], old): old for old in stored}
    read(directory, by_key)


def for_one_machine(value: Any) -> Any:
    """A manifest less what one machine has not: places, queues, devices and Services."""
    if isinstance(value, list):
        return [for_one_machine(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {name: for_one_machine(v) for name, v in value.items() if name not in OF_CLUSTERS}
    if kept.pop("http", None):
        kept["boxed"] = {}
    if kept.pop("openEnv", None):
        kept["calculator"] = {}
    for part in ("requests", "limits"):
        kept |= (
            {part: {n: q for n, q in kept[part].items() if n in BOUNDED}} if part in kept else {}
        )
    return kept


@ours(GOOD)
def test_takes(tmp_path: Path, case: Manifest) -> None:
    taken(tmp_path, for_one_machine(case))


@ours(BAD, of=0)
def test_refuses(tmp_path: Path, case: tuple[Manifest, str, Any, str, str]) -> None:
    good, path, value, field, remedy = case
    spoilt = edited(good, path, value)
    with pytest.raises(ManifestError) as caught:
        taken(tmp_path, spoilt)
    # A rule says it in the same words; the rest is said by the types.
    if any(not refusal.undecided for refusal in refusals(spoilt, None)):
        assert field in str(caught.value)
        assert remedy in str(caught.value)


@ours(FREE)
def test_takes_a_change(tmp_path: Path, case: Manifest) -> None:
    taken(tmp_path, for_one_machine(case), *STORED)


@ours(CHANGES, of=0)
def test_refuses_a_change(tmp_path: Path, case: tuple[Manifest, str, Any, str]) -> None:
    good, path, value, remedy = case
    with pytest.raises(ManifestError) as caught:
        taken(tmp_path, edited(good, path, value), *STORED)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("case", [c for c in CHANGES.values() if c[0]["kind"] == "Checkpoint"])
def test_rules_are_those_of_every_kind(case: tuple[Manifest, str, Any, str]) -> None:
    good, path, value, remedy = case
    (refusal, *_) = refusals(edited(good, path, value), CHECKPOINT)
    assert remedy in refusal.message


# What of a pod's template is honoured, one machine or many.
HONOURED = {"env", "labels", "annotations", "resources"}


def test_each_field_of_a_template_is_honoured_or_refused() -> None:
    fields = {field.alias for field in PodTemplate.model_fields.values()}
    assert fields == HONOURED | set(OF_CLUSTERS)


TEMPLATE = GOOD["run with every field of a template"]["spec"]["runner"]["template"]


@pytest.mark.parametrize("field", sorted(OF_CLUSTERS))
@pytest.mark.parametrize(
    ("good", "part"), [(MODEL, "trainer"), (MODEL, "rollout"), (MODEL, "jobs"), (RUN, "runner")]
)
def test_what_places_a_pod_is_refused_by_its_field_with_the_remedy(
    tmp_path: Path, good: Manifest, part: str, field: str
) -> None:
    said = rf"spec\.{part}\.template\.{field}: .*: remove it here"
    with pytest.raises(ManifestError, match=said):
        taken(tmp_path, edited(good, f"spec.{part}.template", {field: TEMPLATE[field]}))


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ("run of OpenEnv", "spec.taskset.openEnv.serviceRef.name"),
        ("run with a reward of each kind", "spec.rewards[tests].http.serviceRef.name"),
    ],
)
def test_a_service_is_refused_by_the_field_that_names_it(
    tmp_path: Path, case: str, field: str
) -> None:
    with pytest.raises(ManifestError, match=re.escape(f"{field}: there is no Service on one mach")):
        taken(tmp_path, GOOD[case])


GPU = {"limits": {"nvidia.com/gpu": 1}}
PLAYED = {"image": "registry.example/game:1", "tasks": "game:tasks", "rollout": "game:rollout"}


@pytest.mark.parametrize(
    ("good", "path", "value", "field"),
    [
        (
            MODEL,
            "spec.trainer",
            {"template": {"resources": GPU}},
            "spec.trainer.template.resources",
        ),
        (
            RUN,
            "spec.taskset",
            {"seed": 1, "python": {**PLAYED, "resources": GPU}},
            "spec.taskset.python.resources",
        ),
    ],
    ids=["a trainer", "an image that plays"],
)
def test_a_device_is_refused_by_its_name(
    tmp_path: Path, good: Manifest, path: str, value: Any, field: str
) -> None:
    with pytest.raises(ManifestError, match=re.escape(f"{field}.limits[nvidia.com/gpu]: devices")):
        taken(tmp_path, edited(good, path, value))


CONFIG = {"kind": "ConfigMap", "metadata": {"name": "sums"}, "data": {}}


@pytest.mark.parametrize("good", [MODEL, CONFIG], ids=["a model", "a ConfigMap"])
def test_another_namespace_is_refused_for_nobody_would_serve_it(
    tmp_path: Path, good: Manifest
) -> None:
    with pytest.raises(ManifestError, match=r"metadata\.namespace: default is the only namespace"):
        taken(tmp_path, edited(good, "metadata.namespace", "prod"))
    taken(tmp_path, edited(good, "metadata.namespace", "default"))
