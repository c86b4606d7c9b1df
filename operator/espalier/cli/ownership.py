"""Reads from an object who may edit it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.cli.failure import CliError
from espalier.core.gitowner import git_owner


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
