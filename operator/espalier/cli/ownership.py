"""Reads from an object who may edit it, and who edited it last. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.cli.failure import CliError
from espalier.core.gitowner import REQUESTED_BY, git_owner


def mover(head: Mapping[str, Any]) -> str:
    """Who last edited the head's request; empty if the API server does not say.

    Args:
        head: a CheckpointHead as read, ``managedFields`` included.
    """
    metadata = head["metadata"]
    entries = [entry for entry in metadata.get("managedFields") or () if _asks(entry)]
    if not entries:
        return ""
    manager = str(max(entries, key=lambda entry: entry.get("time", "")).get("manager", ""))
    user = (metadata.get("annotations") or {}).get(REQUESTED_BY, "")
    return f"{user} through {manager}" if user and manager.startswith("espalier") else manager


def not_owned_by_git(body: Mapping[str, Any]) -> None:
    """Refuses an edit that Argo CD or Flux would undo.

    Raises:
        CliError: of kind conflict; says where to commit the edit instead.
    """
    owner = git_owner(body["metadata"])
    if owner is not None:
        raise CliError(
            f"Git owns {body['kind']} {body['metadata']['name']} through {owner}, which would undo "
            "this edit",
            "conflict",
            "Commit it instead; `espalier promote --git` does so for a pin",
        )


def _asks(entry: Mapping[str, Any]) -> bool:
    spec = (entry.get("fieldsV1") or {}).get("f:spec") or {}
    return "f:mode" in spec or "f:checkpointRef" in spec
