"""Names derived from other names, so that a crash between any two calls is harmless."""

from __future__ import annotations

import re

from espalier.core.volume import DIGEST_PREFIX

MAIN = "main"
BASE = "base"
# The variable by which a pod knows its own uid.
POD_UID = "ESPALIER_POD_UID"
# The audience of ServiceAccount tokens that the gateway takes.
GATEWAY_AUDIENCE = "espalier-gateway"
# The service account of all runners of a namespace, which the chart makes.
RUNNER_ACCOUNT = "espalier-runner"
# Enough to be unique on a volume, short enough to read.
ADAPTER_DIGEST_CHARS = 12
_CHECKPOINT = re.compile(r"(?:(?P<branch>b[0-9]+)-)?(?P<step>[0-9]{6,})")


def checkpoint_name(model: str, branch: str, step: int) -> str:
    """``<model>-<step>`` on main, ``<model>-b<term>-<step>`` elsewhere; six digits."""
    infix = "" if branch == MAIN else f"{branch}-"
    return f"{model}-{infix}{step:06d}"


def imported_name(model: str) -> str:
    """The Checkpoint of a model's ``source.adapter``, which trained steps start from."""
    return checkpoint_name(model, MAIN, 0)


def parse_checkpoint_name(model: str, name: str) -> tuple[str, int] | None:
    """Branch and step of a checkpoint's name; None if it is none of the model's."""
    found = _CHECKPOINT.fullmatch(name.removeprefix(f"{model}-"))
    if found is None or not name.startswith(f"{model}-"):
        return None
    return found["branch"] or MAIN, int(found["step"])


def branch_name(term: int) -> str:
    """The branch that a rollback under this term grows."""
    return f"b{term}"


def adapter_name(slug: str, digest: str) -> str:
    """The immutable name under which rollouts load a checkpoint; never reused.

    vLLM's prefix cache is keyed by adapter name, so a name must mean one set of weights forever.
    An empty digest is the base itself.
    """
    if not digest:
        return BASE
    return f"{slug}@{digest.removeprefix(DIGEST_PREFIX)[:ADAPTER_DIGEST_CHARS]}"


def trainer_name(model: str) -> str:
    """StatefulSet and Service of the model's trainer."""
    return f"{model}-trainer"


def rollout_name(model: str) -> str:
    """Deployment of the model's rollouts."""
    return f"{model}-rollout"


def importer_name(model: str) -> str:
    """Job that copies the model's base to the volume."""
    return f"{model}-import"


def collector_name(model: str) -> str:
    """Job that removes the bytes of a model's deleted checkpoints."""
    return f"{model}-collect"


def scrubber_name(model: str) -> str:
    """Job that reads a model's bytes through and compares them with their digests."""
    return f"{model}-scrub"


def runner_name(run: str) -> str:
    """Job that drives a run."""
    return f"{run}-runner"


def audience(namespace: str, model: str, role: str, uid: str) -> str:
    """The token audience of one pod: no other pod takes the token, nor this one's successor.

    Args:
        namespace: of the model.
        model: whose trainer or rollout the pod is.
        role: ``trainer`` or ``rollout``.
        uid: of the pod, which Kubernetes gives to no other.
    """
    return f"{namespace}/{model}/{role}/{uid}"
