"""What the reconcilers share. Each takes the parts that it uses (process/wiring.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.controllers.observed.blockers import Blockers
from espalier.controllers.observed.lister import Lister
from espalier.controllers.observed.queues import Queues
from espalier.controllers.observed.status_writer import StatusWriter
from espalier.controllers.peers.assignments import Assignments
from espalier.controllers.peers.commit_streams import CommitStreams
from espalier.controllers.peers.importer_client import Imports
from espalier.controllers.peers.samplers import Rollouts
from espalier.core.manifests.installation import ChildSettings
from espalier.kube.cluster import Cluster
from espalier.kube.objects import ObjectKey


@dataclass(frozen=True)
class OperatorContext:
    """``now`` tells the time as RFC 3339, ``enqueue`` asks for another pass over an object."""

    cluster: Cluster
    lister: Lister
    writer: StatusWriter
    rollouts: Rollouts
    trainers: Assignments
    streams: CommitStreams
    blockers: Blockers
    queues: Queues
    imports: Imports
    settings: ChildSettings
    now: Callable[[], str]
    enqueue: Callable[[ObjectKey], None]
