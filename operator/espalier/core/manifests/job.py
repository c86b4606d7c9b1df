"""Jobs: retried when something failed, ended at once when only the user can repair it."""

from __future__ import annotations

from espalier.api.exit_codes import USER_MISTAKE
from espalier.core.manifests.intent import Manifest


def job_spec(
    pod: Manifest, metadata: Manifest, *, container: str, retries: int, seconds: int | None
) -> Manifest:
    """The spec of a Job of one pod, with the pod's metadata.

    ``seconds`` bounds its whole time, None leaves it unbounded.
    """
    ends = {"containerName": container, "operator": "In", "values": [USER_MISTAKE]}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    spec: Manifest = {
        "backoffLimit": retries,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": ends},
                {"action": "Ignore", "onPodConditions": [evicted]},
            ]
        },
        "template": {
            "metadata": metadata,
            "spec": {**pod, "restartPolicy": "Never"},
        },
    }
    if seconds is not None:
        spec["activeDeadlineSeconds"] = seconds
    return spec
