"""``espalier rollouts show --html``: the rollouts of a step as a page in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from espalier.api.checkpoint import Checkpoint
from espalier.cli import checkpoint_export as files
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.rollout_page import page

# What a reader asks first, in the head of the page.
_FACTS = ("rollout/reward/mean", "completion/truncated_fraction", "policy/mismatch_kl")


def write(
    file: Path,
    kubectl: Kubectl,
    checkpoint: Checkpoint,
    found: Sequence[Mapping[str, Any]],
    against: str,
) -> None:
    """Writes the page.

    Args:
        file: to write; what is there is replaced.
        kubectl: reads the other checkpoint.
        checkpoint: whose step ``found`` are the rollouts of.
        found: its records.
        against: name of the checkpoint to compare with; empty for the parent, if there is one that
            keeps any.

    Raises:
        CliError: the file cannot be written, or ``against`` keeps no rollouts.
    """
    name, parent = checkpoint.metadata.name, checkpoint.spec.parent_ref
    other = against or (parent.name if parent is not None else "")
    before = _before(kubectl, other, named=bool(against)) if other else []
    text = page(name, found, facts=_facts(checkpoint), before=before, before_name=other)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot write {file}: {error.strerror}") from error
    compared = f", compared with {other}" if before else ""
    typer.echo(f"wrote {len(found)} rollouts of {name} to {file}{compared}")


def _before(kubectl: Kubectl, name: str, *, named: bool) -> list[dict[str, Any]]:
    """The records of the other checkpoint. A parent may be deleted, imported, or keep none."""
    try:
        found = files.rollouts(kubectl, name)
    except CliError:
        if named:
            raise
        found = []
    if named and not found:
        raise CliError(f"{name} keeps no rollouts", "not_found", "Compare with another one")
    return found


def _facts(checkpoint: Checkpoint) -> dict[str, str]:
    spec = checkpoint.spec
    seen = {metric.name: metric.value for metric in checkpoint.status.metrics}
    made = {
        "step": str(spec.step),
        "of": spec.model_ref.name,
        "branch": spec.branch,
        **({"run": spec.run_ref.name} if spec.run_ref else {}),
    }
    return made | {name: seen[name] for name in _FACTS if name in seen}
