"""Which checkpoints that lie on a volume become Checkpoints again, after their objects were lost.

The volume also holds what never joined the tree: commits that were fenced. Of two that claim one
place the one is taken that training went on from, else the one of the later term; and with a
commit goes whatever grew from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from espalier.api.wire.commits import Commit


@dataclass(frozen=True)
class Adoption:
    """What to create, parents first; what is there already; what stays out by name, and why."""

    adopted: tuple[Commit, ...]
    present: tuple[Commit, ...]
    refused: tuple[tuple[str, str], ...]


def plan(found: Sequence[Commit], existing: Mapping[str, str]) -> Adoption:
    """What to do about the verified checkpoints of a model; ``existing`` are digests by name."""
    grown_from = {commit.parent for commit in found}
    places: dict[str, list[Commit]] = {}
    for commit in sorted(found, key=lambda c: (c.step, c.term, c.digest)):
        places.setdefault(commit.name, []).append(commit)
    outside: set[str] = set()
    adopted: list[Commit] = []
    present: list[Commit] = []
    refused: list[tuple[str, str]] = []
    for name, claims in places.items():
        existing_digest = existing.get(name)
        fit = [c for c in claims if c.parent not in outside and existing_digest in (None, c.digest)]
        taken = max(fit, key=lambda c: (c.digest in grown_from, c.term, c.digest), default=None)
        for commit in claims:
            if commit is taken:
                (present if existing_digest else adopted).append(commit)
                continue
            outside.add(commit.digest)
            refused.append((name, _why(commit, taken, outside, existing_digest)))
    return Adoption(tuple(adopted), tuple(present), tuple(refused))


def _why(
    commit: Commit, taken: Commit | None, outside: set[str], existing_digest: str | None
) -> str:
    if commit.parent in outside:
        return f"{commit.digest} grew from {commit.parent_name}, which is not of the tree"
    if taken is not None:
        return f"{commit.digest} was fenced: {taken.digest} is at its place"
    return f"{commit.digest} is not what Checkpoint {commit.name} is: {existing_digest}"
