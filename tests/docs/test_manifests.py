"""The manifests that the documents show use fields and values that the API has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.test_links import HAND_WRITTEN, name

from espalier.api.crds import KINDS, definition

BLOCK = re.compile(r"^ *```yaml\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SCHEMAS = {
    kind.name: definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for kind in KINDS
}


def shown(page: Path) -> Iterator[dict[str, Any]]:
    """The objects of our kinds in a page; some show a part of their spec alone."""
    for block in BLOCK.findall(page.read_text()):
        for found in yaml.safe_load_all(block):
            if isinstance(found, dict) and found.get("kind") in SCHEMAS:
                yield found


def unknown(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """Fields that the schema lacks, and values that are none of its choices."""
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value}"
    if isinstance(value, list):
        for item in value:
            yield from unknown(item, schema.get("items", {}), path)
    if isinstance(value, dict) and "properties" in schema:
        for field, inner in value.items():
            if field in schema["properties"]:
                yield from unknown(inner, schema["properties"][field], f"{path}.{field}")
            else:
                yield f"{path}.{field}"


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_a_manifest_uses_what_the_api_has(page: Path) -> None:
    wrong = [
        said
        for manifest in shown(page)
        for said in unknown(
            manifest["spec"], SCHEMAS[manifest["kind"]]["properties"]["spec"], "spec"
        )
    ]
    assert wrong == []


def test_manifests_are_found_and_a_wrong_field_is_seen() -> None:
    assert sum(1 for page in HAND_WRITTEN for _ in shown(page)) > 8
    spec = SCHEMAS["CheckpointHead"]["properties"]["spec"]
    assert list(unknown({"mode": "Pinned"}, spec, "spec")) == ["spec.mode: Pinned"]
    assert list(unknown({"onpin": "Pause"}, spec, "spec")) == ["spec.onpin"]
