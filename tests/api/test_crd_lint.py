"""The rules of kube-api-linter, and of our conventions, over the committed CRDs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from espalier.api.crds import KINDS, Kind, definition, rendered
from espalier.api.schema import default_told

ROOT = Path(__file__).resolve().parents[2]
# Where Kubernetes itself has a bool or a map: Job's suspend; core/v1's quantities and selectors.
BOOLS = {"suspend", "head", "superseded"}
MAPS = {
    *("requests", "limits", "nodeSelector", "config", "labels", "annotations", "matchLabels"),
    *("chatTemplateKwargs", "resetOptions"),
    # An item of openEnv.tools, which is of OpenAI's making.
    "",
}
NO_ECHO = {"apiVersion", "kind", "metadata"}


@dataclass(frozen=True)
class Node:
    path: str
    name: str
    schema: dict[str, Any]
    required: bool


def nodes(
    schema: dict[str, Any], path: str, name: str = "", required: bool = False
) -> Iterator[Node]:
    yield Node(path, name, schema, required)
    for child, inner in schema.get("properties", {}).items():
        must = child in schema.get("required", [])
        yield from nodes(inner, f"{path}.{child}", child, must)
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + mark)


def root(kind: Kind) -> dict[str, Any]:
    version = definition(kind)["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


ALL = [node for kind in KINDS for node in nodes(root(kind), kind.name)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.mark.parametrize("directory", ["crds", "charts/espalier/files/crds"])
def test_the_committed_files_are_what_the_types_say(directory: str) -> None:
    committed = {path.name: path.read_text() for path in (ROOT / directory).iterdir()}
    assert committed == {f"{k.plural}.yaml": rendered(k) for k in KINDS}, "run: make crds"


@every_kind
def test_decimals_stay_strings_for_every_yaml_reader(kind: Kind) -> None:
    assert yaml.safe_load(rendered(kind)) == definition(kind)
    # YAML 1.2 readers such as kubectl take a bare 1e-8 for a number.
    assert ": 1e" not in rendered(kind)


@every_kind
def test_spec_is_required_and_status_is_a_subresource(kind: Kind) -> None:
    assert root(kind)["required"] == ["spec"]
    subresources = definition(kind)["spec"]["versions"][0]["subresources"]
    assert subresources["status"] == {}
    assert ("scale" in subresources) == (kind.name == "TrainableModel")


@every_kind
def test_an_object_that_was_never_reconciled_says_so(kind: Kind) -> None:
    status = root(kind)["properties"]["status"]
    assert status["default"] == {"observedGeneration": -1}
    inner = [
        n.path for n in nodes(status, "status") if n.path != "status" and "default" in n.schema
    ]
    assert inner == []


@every_kind
def test_conditions_are_the_first_of_status_and_keyed_by_type(kind: Kind) -> None:
    properties = root(kind)["properties"]["status"]["properties"]
    assert next(iter(properties)) == "conditions"
    assert properties["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert set(properties["conditions"]["items"]["required"]) == {
        "type",
        "status",
        "lastTransitionTime",
        "reason",
        "message",
    }


def test_no_field_is_called_phase() -> None:
    assert [n.path for n in ALL if n.name == "phase"] == []


def test_numbers_are_integers_of_a_known_width() -> None:
    assert [n.path for n in ALL if n.schema.get("type") == "number"] == []
    integers = [n for n in ALL if n.schema.get("type") == "integer"]
    assert {n.schema["format"] for n in integers} <= {"int32", "int64"}


def test_bools_and_maps_are_only_where_kubernetes_has_them() -> None:
    bools = {n.name for n in ALL if n.schema.get("type") == "boolean"}
    maps = {
        n.name
        for n in ALL
        if "additionalProperties" in n.schema
        or n.schema.get("x-kubernetes-preserve-unknown-fields")
    }
    assert bools == BOOLS
    assert maps == MAPS


def test_durations_are_seconds_by_name() -> None:
    names = {n.name for n in ALL}
    assert [x for x in names if x.lower().endswith(("duration", "timeout", "interval"))] == []


def test_every_string_list_and_map_is_bounded() -> None:
    limit = {"string": "maxLength", "array": "maxItems"}
    free = [
        n.path
        for n in ALL
        if n.schema.get("type") in limit
        and n.name not in NO_ECHO
        and "enum" not in n.schema
        and limit[n.schema["type"]] not in n.schema
    ]
    free += [
        n.path
        for n in ALL
        if "additionalProperties" in n.schema and "maxProperties" not in n.schema
    ]
    assert free == []


def test_every_list_says_how_server_side_apply_merges_it() -> None:
    lists = [n for n in ALL if n.schema.get("type") == "array"]
    assert [n.path for n in lists if "x-kubernetes-list-type" not in n.schema] == []


def test_a_required_field_has_no_default() -> None:
    assert [n.path for n in ALL if n.required and "default" in n.schema] == []


def test_every_property_is_described_and_the_description_starts_with_its_name() -> None:
    wrong = [
        n.path
        for n in ALL
        if n.name
        and n.name != "metadata"
        and n.schema.get("description", "").partition(" ")[0].rstrip(",:.") != n.name
    ]
    assert wrong == []


def test_references_name_an_object_of_the_same_namespace() -> None:
    references = [n for n in ALL if n.name.endswith("Ref")]
    assert references
    # What is taken over from the referenced object may stand beside its name; a namespace may not.
    allowed = [{"name"}, {"name", "optimizerState"}, {"name", "key"}, {"name", "key", "function"}]
    allowed += [{"name", "port"}, {"name", "port", "path"}]
    assert [n.path for n in references if set(n.schema["properties"]) not in allowed] == []


def test_every_rule_has_a_message_that_fits_a_line() -> None:
    rules = [rule for n in ALL for rule in n.schema.get("x-kubernetes-validations", [])]
    assert rules
    assert [rule for rule in rules if not 10 < len(rule["message"]) < 160] == []


def test_kubectl_explain_says_every_default() -> None:
    silent = [
        node.path
        for node in ALL
        if default_told(node.schema)
        and not re.search(r"default|unset", node.schema["description"], re.IGNORECASE)
    ]
    assert not silent
    texts = {node.path: " ".join(node.schema["description"].split()) for node in ALL}
    assert texts["TrainingRun.spec.sampling.maxTokens"].endswith("Default: 256.")
    assert texts["TrainingRun.spec.sampling.temperature"].endswith('Default: "1.0".')
