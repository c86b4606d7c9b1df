"""Finds a CheckpointHead in a YAML file, and pins it by an edit that changes nothing else.

PyYAML's nodes know their place in the text, so an edit replaces only those characters: comments,
order and quoting stay. The edited text is read again and must pin the intended checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from espalier.api.checkpointhead import CheckpointHeadSpec
from espalier.api.meta import GROUP

KIND = "CheckpointHead"
PIN = "Pin"


class HeadManifestError(Exception):
    """The text cannot be edited; the message says what to do."""


@dataclass(frozen=True)
class HeadManifest:
    """One head's document within the text of a file."""

    text: str
    index: int
    name: str
    namespace: str
    spec: CheckpointHeadSpec

    @property
    def pin(self) -> str:
        """The checkpoint that it is pinned to; empty when it tracks."""
        reference = self.spec.checkpoint_ref
        return reference.name if reference is not None and self.spec.mode == PIN else ""

    def pinned(self, checkpoint: str) -> str:
        """The text with this head pinned to a checkpoint.

        Raises:
            HeadManifestError: if no small edit does that, for example because of YAML aliases.
        """
        before = list(documents_of(self.text))
        node = list(yaml.compose_all(self.text, Loader=yaml.SafeLoader))[self.index]
        edited = self.text
        # From the end, so that places before it stay where they are.
        for start, end, new in sorted(_edits(self.text, node, checkpoint), reverse=True):
            edited = edited[:start] + new + edited[end:]
        wanted = copy.deepcopy(before)
        wanted[self.index]["spec"] |= {"mode": PIN, "checkpointRef": {"name": checkpoint}}
        if not _says(edited, wanted):
            raise HeadManifestError(
                f"{self.name} cannot be edited in place: write mode and checkpointRef as plain "
                "fields of its spec, without YAML anchors or aliases"
            )
        return edited


def heads(text: str) -> list[HeadManifest]:
    """The heads that a file declares.

    Raises:
        HeadManifestError: if the text is not YAML, or a head in it is not valid.
    """
    manifests = []
    for index, document in enumerate(documents_of(text)):
        if not isinstance(document, dict) or document.get("kind") != KIND:
            continue
        if not str(document.get("apiVersion", "")).startswith(f"{GROUP}/"):
            continue
        metadata = document.get("metadata") or {}
        try:
            spec = CheckpointHeadSpec.model_validate(document.get("spec"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["spec", *(str(part) for part in first["loc"])])
            raise HeadManifestError(
                f"{KIND} {metadata.get('name')}: {where}: {first['msg']}"
            ) from error
        name, namespace = str(metadata.get("name", "")), str(metadata.get("namespace", ""))
        manifests.append(HeadManifest(text, index, name, namespace, spec))
    return manifests


def _says(text: str, wanted: list[Any]) -> bool:
    try:
        return list(documents_of(text)) == wanted
    except HeadManifestError:
        return False


def documents_of(text: str) -> Iterator[Any]:
    """The documents of a YAML text; HeadManifestError if it is not YAML."""
    try:
        yield from yaml.safe_load_all(text)
    except yaml.YAMLError as error:
        raise HeadManifestError(f"not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise HeadManifestError("nested too deeply to be read") from error


_Edit = tuple[int, int, str]


def _edits(text: str, document: Any, checkpoint: str) -> Iterator[_Edit]:
    """Replacements (start, end, new text) that pin the head of a document."""
    spec = _child(document, "spec")
    mode, reference = _child(spec, "mode"), _child(spec, "checkpointRef")
    if mode is None:
        raise HeadManifestError("spec.mode is missing: it is Track or Pin")
    yield mode.start_mark.index, mode.end_mark.index, PIN
    scalar = _scalar(checkpoint)
    if reference is not None:
        name = _child(reference, "name")
        if name is None:
            yield reference.start_mark.index, reference.end_mark.index, f"{{name: {scalar}}}"
        else:
            yield name.start_mark.index, name.end_mark.index, scalar
    elif spec.flow_style:
        at = mode.end_mark.index
        yield at, at, f", checkpointRef: {{name: {scalar}}}"
    else:
        yield _line_after(text, spec, mode, scalar)


def _line_after(text: str, spec: Any, mode: Any, scalar: str) -> _Edit:
    """checkpointRef as lines of their own below the line of mode, in the file's line endings."""
    newline = "\r\n" if "\r\n" in text else "\n"
    indent = " " * int(spec.value[0][0].start_mark.column)
    lines = f"{indent}checkpointRef:{newline}{indent}  name: {scalar}{newline}"
    end = text.find("\n", mode.end_mark.index)
    if end < 0:
        return len(text), len(text), newline + lines
    return end + 1, end + 1, lines


def _child(node: Any, key: str) -> Any:
    """The node under a key of a mapping; None if the key is absent."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _scalar(text: str) -> str:
    return text if yaml.safe_load(text) == text else json.dumps(text)
