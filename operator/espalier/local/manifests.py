"""Reads a directory of manifests as ``kubectl apply`` would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from espalier.api.checkpointhead import CheckpointHeadSpec
from espalier.api.meta import API_VERSION
from espalier.api.trainablemodel import TrainableModelSpec
from espalier.api.trainingrun import TrainingRunSpec
from espalier.kube.objects import Body, ObjectKey
from espalier.local.admission import refusals
from espalier.local.layout import NAMESPACE
from espalier.local.one_machine import elsewhere, lacking

SPECS: dict[str, type[BaseModel]] = {
    "TrainableModel": TrainableModelSpec,
    "TrainingRun": TrainingRunSpec,
    "CheckpointHead": CheckpointHeadSpec,
}
# The names that kustomize knows, and those of manifests where there is none of them.
KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
MANIFESTS = ("*.yaml", "*.yml")
# What of a kustomization is read; the rest would change what it lists.
READ = ("apiVersion", "kind", "metadata", "resources")
LIST = "list the manifests, or remove it, and every file of YAML in the directory is read"


class ManifestError(Exception):
    """A manifest that an API server would refuse; names file, object, field and problem."""


@dataclass(frozen=True)
class Manifests:
    """The objects to apply, and by kind and name those that have no meaning on one machine."""

    objects: tuple[Body, ...]
    ignored: tuple[str, ...]


def read(directory: Path, stored: Mapping[ObjectKey, Body]) -> Manifests:
    """The manifests of a directory: those its kustomization lists, else every file of YAML.

    Args:
        directory: of files.
        stored: the objects that they would change; some fields are immutable.

    Raises:
        ManifestError: the directory or a file of it cannot be read as manifests, or an API server
            would refuse an object.
    """
    objects: list[Body] = []
    ignored: list[str] = []
    for file in _files(directory):
        for body in _documents(file):
            if body["kind"] in SPECS or body["kind"] == "ConfigMap":
                objects.append(_checked(file, body, stored))
            else:
                ignored.append(f"{body['kind']} {body['metadata']['name']}")
    if not objects:
        raise ManifestError(f"{directory} declares no {', '.join(SPECS)}")
    return Manifests(tuple(objects), tuple(ignored))


def fingerprint(directory: Path) -> frozenset[tuple[Path, int, int, int]]:
    """Changes whenever a manifest does, also when an older file takes its place."""
    files = {*_all(directory), *(directory / name for name in KUSTOMIZATIONS)}
    # Without a readable kustomization nothing is listed; the directory's own files count then.
    with suppress(ManifestError):
        files |= set(_files(directory))
    return frozenset(found for file in files if (found := _version(file)))


def _version(file: Path) -> tuple[Path, int, int, int] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return file, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _files(directory: Path) -> Sequence[Path]:
    if not directory.is_dir():
        raise ManifestError(f"{directory} is not a directory: name one with manifests")
    there = [directory / name for name in KUSTOMIZATIONS if (directory / name).is_file()]
    return _listed(there[0]) if there else _all(directory)


def _all(directory: Path) -> Sequence[Path]:
    return sorted(file for pattern in MANIFESTS for file in directory.glob(pattern))


def _listed(kustomization: Path) -> Sequence[Path]:
    """The files that a kustomization lists."""
    directory = kustomization.parent
    documents = _parse(kustomization)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ManifestError(f"{kustomization}: must be one document with resources: {LIST}")
    (found,) = documents
    if unread := [str(field) for field in found if field not in READ]:
        raise ManifestError(
            f"{kustomization}: {', '.join(unread)}: only resources are read here: write what "
            f"kubectl kustomize {directory} prints into a directory of its own, and name that"
        )
    listed = found.get("resources")
    if not isinstance(listed, list) or not listed:
        raise ManifestError(f"{kustomization}: resources: must be a list of files: {LIST}")
    files = [directory / str(name) for name in listed]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ManifestError(
            f"{kustomization}: resources: {', '.join(missing)} is not a file; "
            "only files are read here"
        )
    return files


def _parse(file: Path) -> list[Any]:
    try:
        return [document for document in yaml.safe_load_all(file.read_text()) if document]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file} is not YAML: {error}") from error
    except RecursionError as error:
        raise ManifestError(f"{file} is nested too deeply to be read") from error


def _documents(file: Path) -> list[Body]:
    documents = _parse(file)
    for body in documents:
        metadata = body.get("metadata") if isinstance(body, dict) else None
        named = isinstance(metadata, dict) and metadata.get("name")
        if not named or "kind" not in body:
            raise ManifestError(f"{file}: a document has no kind or no metadata.name")
    return documents


def _checked(file: Path, body: Body, stored: Mapping[ObjectKey, Body]) -> Body:
    kind, metadata = body["kind"], {"namespace": NAMESPACE, **body["metadata"]}
    what = f"{file}: {kind} {metadata['name']}"
    if problem := elsewhere(metadata):
        raise ManifestError(f"{what}: {problem}")
    if kind in SPECS:
        if body.get("apiVersion") != API_VERSION:
            raise ManifestError(f"{what}: apiVersion must be {API_VERSION}")
        old = stored.get(ObjectKey(kind, metadata["namespace"], str(metadata["name"])))
        if problem := _problem(body, old):
            raise ManifestError(f"{what}: {problem}")
    return {**body, "metadata": metadata}


def _problem(body: Body, old: Body | None) -> str:
    """Why an API server or one machine refuses an object; the message includes the remedy."""
    found = list(refusals(body, old))
    decided = [refusal for refusal in found if not refusal.undecided]
    if decided:
        return str(decided[0])
    try:
        spec = SPECS[body["kind"]].model_validate(body.get("spec") or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("spec", *first["loc"]))
        given = first["input"]
        if first["type"] == "string_type" and type(given) in {int, float}:
            return f'{field}: must be a string, and this is a number: write it quoted, "{given}"'
        return f"{field}: {first['msg']}"
    if found:
        return str(found[0])
    return lacking(body.get("spec") or {}, spec)
