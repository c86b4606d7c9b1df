"""Jobs: retried when something failed, ended at once when only the user can repair it."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.core.manifests.intent import Manifest


def job_spec(
    pod: Manifest,
    metadata: Manifest,
    *,
    container: str,
    retries: int,
    seconds: int | None,
    copies: Sequence[str] = (),
) -> Manifest:
    """The spec of a Job of one pod, with the pod's metadata.

    ``seconds`` bounds its whole time, None leaves it unbounded. ``copies`` are init containers that
    copy files of a user's image: what ``cp`` does not find there, it finds at no later try.
    """
    ends = [_ends(container, USER_MISTAKE), *(_ends(copy, FAULT) for copy in copies)]
    evicted = {"type": "DisruptionTarget", "status": "True"}
    spec: Manifest = {
        "backoffLimit": retries,
        "podFailurePolicy": {
            "rules": [*ends, {"action": "Ignore", "onPodConditions": [evicted]}],
        },
        "template": {
            "metadata": metadata,
            "spec": {**pod, "restartPolicy": "Never"},
        },
    }
    if seconds is not None:
        spec["activeDeadlineSeconds"] = seconds
    return spec


def _ends(container: str, code: int) -> Manifest:
    """The rule that a container's exit code ends the Job."""
    codes = {"containerName": container, "operator": "In", "values": [code]}
    return {"action": "FailJob", "onExitCodes": codes}
