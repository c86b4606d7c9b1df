"""Who edited what a head asks for: the API server keeps the manager of every field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.api.checkpointhead import HeadEditor
from espalier.core.gitowner import GATEWAY_MANAGER, REQUESTED_BY
from espalier.core.head.head import HeadDecision

# By weight: times have whole seconds, and of two edits in one the later has taken these over.
_ASKING = ("f:mode", "f:checkpointRef", "f:onPin")
_MOST = 316


def editor(metadata: Mapping[str, Any]) -> HeadEditor | None:
    """The last who edited the head's request; None if the API server does not say.

    A user's name is believed only of the gateway's own edit: its annotation stays on the object
    when somebody else edits it later.

    Args:
        metadata: of a CheckpointHead as read, ``managedFields`` included.
    """
    managers = metadata.get("managedFields") or ()
    entries = [entry for entry in managers if entry.get("time") and _asks(entry)]
    if not entries:
        return None
    last = max(entries, key=lambda entry: (str(entry["time"]), _asks(entry)))
    manager = str(last.get("manager", ""))[:128]
    user = str((metadata.get("annotations") or {}).get(REQUESTED_BY, ""))[:_MOST]
    return HeadEditor(
        manager=manager,
        user=user if manager == GATEWAY_MANAGER else "",
        time=str(last["time"]),
    )


def asked_by(metadata: Mapping[str, Any]) -> str:
    """``editor`` in words; empty if the API server does not say."""
    return str(editor(metadata) or "")


def edited_by(decision: HeadDecision, by: HeadEditor | None) -> HeadDecision:
    """The decision with who asked for its move."""
    if decision.moved is None or by is None:
        return decision
    moved = decision.moved.model_copy(update={"editor": by})
    history = [moved, *decision.status.history[1:]]
    status = decision.status.model_copy(update={"history": history})
    return HeadDecision(status, decision.load, moved)


def _asks(entry: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which fields of the request are the manager's; empty if none is."""
    spec = (entry.get("fieldsV1") or {}).get("f:spec") or {}
    found = tuple(field in spec for field in _ASKING)
    return found if any(found) else ()
