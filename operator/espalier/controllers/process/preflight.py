"""What must hold before the operator can work: CRDs of its version, and its permissions.

Missing rights and fields are named on /readyz and in the log, and waited for: a process that ended
instead would restart in a loop and explain less. A namespace that may not be watched is left out
until it may be, because one forgotten RoleBinding must not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from espalier.api.crds import KINDS, definition
from espalier.api.meta import GROUP, VERSION
from espalier.controllers.process.triggers import WATCHED
from espalier.kube.cluster import ClusterError
from espalier.kube.objects import Body, kind_of

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
SHOWN = 8
READS = ("list", "watch")
# Beyond what is watched: Events and Workloads are listed, ConfigMaps read where something waits.
ASKS: Mapping[str, tuple[str, ...]] = {
    "Event": ("list",),
    "Workload": ("list",),
    "ConfigMap": ("get",),
}
WRITES: Mapping[str, tuple[str, ...]] = {
    **{f"{kind.name}/status": ("patch",) for kind in KINDS},
    "CheckpointHead": ("create",),
    "Checkpoint": ("create", "patch"),
    "StatefulSet": ("create", "patch", "delete"),
    "Deployment": ("create", "patch", "delete"),
    "Service": ("create", "patch"),
    "Job": ("create", "delete"),
    "Event": ("create", "patch"),
}


class Ground(Protocol):
    """What the operator asks an API server about itself."""

    async def may(self, verb: str, kind: str, namespace: str, subresource: str = "") -> bool:
        """Whether the operator may do this."""

    async def served_schemas(self, group: str, version: str) -> dict[str, Body]:
        """The schemas of a group's kinds, as served."""


@dataclass
class Refused:
    """Verbs by resource that may not be used; ``blocks``: the namespace cannot be watched."""

    verbs: dict[str, list[str]] = field(default_factory=dict)
    blocks: bool = False

    def text(self) -> str:
        """For people: each resource with its verbs."""
        return _listed([f"{'/'.join(verbs)} {resource}" for resource, verbs in self.verbs.items()])


class Preflight:
    """Checks before the first list, and as long as something is missing."""

    def __init__(self, ground: Ground, namespaces: tuple[str, ...]) -> None:
        self._ground = ground
        self._namespaces = namespaces
        self._served: tuple[str, ...] = ()
        self.fault: str | None = None

    async def begin(self, stop: asyncio.Event) -> tuple[str, ...]:
        """The namespaces that may be watched, once there is one and the CRDs fit; none on stop."""
        while not stop.is_set():
            self._served = await self._look()
            if self._served:
                return self._served
            await _pause(stop)
        return ()

    async def recover(self, stop: asyncio.Event) -> None:
        """Checks until nothing is missing; sets ``stop`` once more namespaces can be served."""
        while not stop.is_set() and self.fault is not None:
            await _pause(stop)
            if set(await self._look()) > set(self._served):
                logger.info("more namespaces may be watched now: restarting to serve them")
                stop.set()

    async def _look(self) -> tuple[str, ...]:
        """The namespaces that can be served; notes what is missing."""
        try:
            outdated = lacking(await self._ground.served_schemas(GROUP, VERSION))
            refused = {name: await self._refused(name) for name in sorted(self._namespaces)}
        except ClusterError as error:
            self._note(f"the API server does not say what it serves: {error}")
            return ()
        missing = [f"in namespace {name}: {r.text()}" for name, r in refused.items() if r.verbs]
        faults = []
        if outdated:
            faults.append(
                f"the CRDs are of another version, without {_listed(outdated)}: apply those of "
                "this operator's chart"
            )
        if missing:
            faults.append(f"permissions are missing {'; '.join(missing)}. Apply the chart's roles")
        self._note("; ".join(faults) or None)
        if outdated:
            return ()
        return tuple(name for name in self._namespaces if not refused[name].blocks)

    async def _refused(self, namespace: str) -> Refused:
        """The actions that are not allowed in a namespace."""
        wanted = [(verb, kind, True) for kind in WATCHED for verb in READS]
        others = [*WRITES.items(), *ASKS.items()]
        wanted += [(verb, kind, False) for kind, verbs in others for verb in verbs]
        refused = Refused()
        for verb, what, reads in wanted:
            kind, _, subresource = what.partition("/")
            if not await self._ground.may(verb, kind, namespace, subresource):
                resource = "/".join(filter(None, (kind_of(kind).plural, subresource)))
                refused.verbs.setdefault(resource, []).append(verb)
                refused.blocks |= reads
        return refused

    def _note(self, fault: str | None) -> None:
        if fault != self.fault and fault is not None:
            logger.error("%s", fault)
        elif fault != self.fault:
            logger.info("nothing is missing any more")
        self.fault = fault


def lacking(served: Mapping[str, Body]) -> list[str]:
    """The fields that this operator writes or reads and the served CRDs do not have."""
    found = []
    for kind in KINDS:
        if kind.name not in served:
            found.append(kind.name)
            continue
        version = definition(kind)["spec"]["versions"][0]
        expected = version["schema"]["openAPIV3Schema"]
        for part in ("spec", "status"):
            fields = served[kind.name].get("properties", {}).get(part, {})
            paths = _missing(expected["properties"][part], fields, f"{kind.name}.{part}")
            found.extend(paths)
    return found


def _missing(expected: Body, served: Body, path: str) -> Iterator[str]:
    if expected.get("x-kubernetes-preserve-unknown-fields"):
        return
    there = served.get("properties", {})
    for name, schema in expected.get("properties", {}).items():
        if name not in there:
            yield f"{path}.{name}"
        else:
            yield from _missing(schema, there[name], f"{path}.{name}")
    if "items" in expected and "items" in served:
        yield from _missing(expected["items"], served["items"], f"{path}[]")


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


async def _pause(stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(RETRY_SECONDS):
            await stop.wait()
    except TimeoutError:
        pass
