"""Jobs: retried when something failed, ended at once when only the user can repair it."""

from __future__ import annotations

from espalier.api.exit_codes import TERMINATED, USER_MISTAKE
from espalier.api.podtemplate import PodTemplate
from espalier.core.manifests.intent import Manifest
from espalier.core.manifests.queue import suspended


def job_spec(
    pod: Manifest,
    metadata: Manifest,
    template: PodTemplate | None,
    *,
    container: str,
    retries: int,
    seconds: int | None,
) -> Manifest:
    """The spec of a Job of one pod, with the pod's metadata and its user's template.

    ``seconds`` bounds its whole time, None leaves it unbounded. What others end counts as no
    failure: a node that is lost, and a queue that suspends the Job.
    """
    ends = {"containerName": container, "operator": "In", "values": [USER_MISTAKE]}
    asked = {"containerName": container, "operator": "In", "values": [TERMINATED]}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    spec: Manifest = {
        "backoffLimit": retries,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": ends},
                {"action": "Ignore", "onPodConditions": [evicted]},
                {"action": "Ignore", "onExitCodes": asked},
            ]
        },
        "template": {
            "metadata": metadata,
            "spec": {**pod, "restartPolicy": "Never"},
        },
        **suspended(template),
    }
    if seconds is not None:
        spec["activeDeadlineSeconds"] = seconds
    return spec
