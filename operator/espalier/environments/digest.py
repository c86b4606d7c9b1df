"""The digest of a taskset, and whether a run's taskset is still the one that it began with. Pure.

Where all tasks can be told, the digest is that of the tasks. Where they are made by a generator or
a server it is that of their source: its name, version, options, size and seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.api.run.taskset import Taskset
from espalier.core.volume import DIGEST_PREFIX, canonical_json
from espalier.environments.errors import UserError

# The field of a trainer's cursor that holds a ``Mark``.
FIELD = "taskset"


def taskset_digest(tasks: Iterable[Any]) -> str:
    """``sha256:`` over the canonical JSON of the tasks in their order, or of a source's identity.

    One line each, so that no two lists of tasks give the same bytes.
    """
    found = hashlib.sha256()
    for task in tasks:
        found.update(canonical_json(task).encode() + b"\n")
    return f"{DIGEST_PREFIX}{found.hexdigest()}"


@dataclass(frozen=True)
class Mark:
    """What a run's cursor says of its taskset: what was declared, and what was found there."""

    run: str
    declared: str
    found: str

    @classmethod
    def of(cls, run: str, spec: Taskset, digest: str) -> Mark:
        """The mark of a run (its identity) whose taskset ``spec`` gave tasks of ``digest``."""
        return cls(run, taskset_digest([spec.wire()]), digest)

    def wire(self) -> dict[str, str]:
        """As a cursor holds it."""
        return {"run": self.run, "declared": self.declared, "found": self.found}

    def check(self, cursor: Mapping[str, Any]) -> None:
        """Refuses tasks that changed while what the run declares stayed the same.

        A cursor of another run, or of a taskset that was declared in another way, says nothing.

        Raises:
            UserError: ``TasksetChanged``.
        """
        before = cursor.get(FIELD)
        if not isinstance(before, Mapping) or before.get("found") == self.found:
            return
        if (before.get("run"), before.get("declared")) != (self.run, self.declared):
            return
        raise UserError(
            "TasksetChanged",
            f"spec.taskset is the same, and its tasks are others: {_short(before.get('found'))} "
            f"before, {_short(self.found)} now",
            "Put the tasks back as they were, or say that you mean it: name them anew in "
            "spec.taskset (another ConfigMap, image, path or seed), or create another run",
        )


def _short(digest: Any) -> str:
    return str(digest)[: len(DIGEST_PREFIX) + 12]
