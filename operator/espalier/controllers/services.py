"""What every reconciler works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espalier.controllers.hindrances import Hindrances
from espalier.controllers.importer_client import Imports
from espalier.controllers.rollouts import Rollouts
from espalier.controllers.snapshot import Snapshot
from espalier.controllers.status import StatusWriter
from espalier.controllers.streams import CommitStreams
from espalier.controllers.trainers import Trainers
from espalier.core.manifests.settings import ChildSettings
from espalier.kube.cluster import Cluster
from espalier.kube.objects import Key


@dataclass(frozen=True)
class Services:
    """``now`` tells the time as RFC 3339, ``enqueue`` asks for another pass over an object."""

    cluster: Cluster
    snapshot: Snapshot
    writer: StatusWriter
    rollouts: Rollouts
    trainers: Trainers
    streams: CommitStreams
    hindrances: Hindrances
    imports: Imports
    settings: ChildSettings
    now: Callable[[], str]
    enqueue: Callable[[Key], None]
