"""Jobs: retried when something failed, ended at once when only the user can repair it."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.api.exit_codes import FAULT, TERMINATED, USER_MISTAKE
from espalier.api.podtemplate import PodTemplate
from espalier.core.manifests.intent import Manifest
from espalier.core.manifests.queue import suspended


def job_spec(
    pod: Manifest,
    metadata: Manifest,
    template: PodTemplate | None,
    *,
    containers: Sequence[str],
    retries: int,
    seconds: int | None,
    copies: Sequence[str] = (),
) -> Manifest:
    """The spec of a Job of one pod, with the pod's metadata and its user's template.

    ``seconds`` bounds its whole time, None leaves it unbounded. ``containers`` are those of ours,
    which end as ``api.exit_codes`` says. ``copies`` are init containers that copy files of a user's
    image: what ``cp`` does not find there, it finds at no later try. What others end counts as no
    failure: a node that is lost, and a queue that suspends the Job.
    """
    evicted = {"type": "DisruptionTarget", "status": "True"}
    spec: Manifest = {
        "backoffLimit": retries,
        "podFailurePolicy": {
            "rules": [
                *(_rule("FailJob", name, USER_MISTAKE) for name in containers),
                *(_rule("FailJob", copy, FAULT) for copy in copies),
                {"action": "Ignore", "onPodConditions": [evicted]},
                *(_rule("Ignore", name, TERMINATED) for name in containers),
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


def _rule(action: str, container: str, code: int) -> Manifest:
    """What a container's exit code means for the Job."""
    codes = {"containerName": container, "operator": "In", "values": [code]}
    return {"action": action, "onExitCodes": codes}
