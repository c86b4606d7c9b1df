"""One Kustomization of a real Flux, made from examples/gitops/flux.yaml.

source-controller is played by us: it publishes the archive of a revision over HTTP and says so in
the GitRepository's status, which is all that kustomize-controller sees of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import yaml
from aiohttp import web
from dev.gitops import FLUX_NAMESPACE, Flux
from dev.ports import free_port
from tests.gitops.repository import BRANCH, ROOT
from tests.gitops.team import Team

from espalier.kube.objects import Body

EXAMPLE = ROOT / "examples/gitops/flux.yaml"
KUSTOMIZATIONS = f"/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{FLUX_NAMESPACE}/kustomizations"
WAIT_SECONDS = 120


class Kustomization:
    """A team's repository under Flux."""

    def __init__(self, flux: Flux, team: Team, directory: Path) -> None:
        self.flux = flux
        self.team = team
        self.name = team.namespace
        self.directory = directory
        self._url = ""

    async def create(self, revision: str, **spec: object) -> None:
        """Applies GitRepository and Kustomization, and publishes a revision."""
        source, kustomization = yaml.safe_load_all(EXAMPLE.read_text())
        for body in (source, kustomization):
            body["metadata"]["name"] = self.name
        kustomization["spec"]["sourceRef"]["name"] = self.name
        kustomization["spec"]["targetNamespace"] = self.team.namespace
        kustomization["spec"] |= spec
        bundle = {"apiVersion": "v1", "kind": "List", "items": [source, kustomization]}
        await self._kubectl("apply", "-f", "-", stdin=json.dumps(bundle))
        await self.publish(revision)

    async def publish(self, revision: str) -> None:
        """What source-controller does once it has fetched a commit."""
        archive = f"{revision}.tar.gz"
        path = self.directory / archive
        self.team.repository.git("archive", "--format=tar.gz", f"--output={path}", revision)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        source = json.loads(await self._kubectl("get", "gitrepository", self.name, "-o=json"))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "Succeeded",
            "message": f"stored artifact of {revision}",
            "lastTransitionTime": now,
            "observedGeneration": source["metadata"]["generation"],
        }
        artifact = {
            "url": f"{self._url}/{archive}",
            "path": archive,
            "revision": f"{BRANCH}@sha1:{revision}",
            "digest": f"sha256:{digest}",
            "size": path.stat().st_size,
            "lastUpdateTime": now,
        }
        status = {
            "observedGeneration": source["metadata"]["generation"],
            "conditions": [ready],
            "artifact": artifact,
        }
        patch = json.dumps({"status": status})
        await self._kubectl(
            "patch",
            "gitrepository",
            self.name,
            "--subresource=status",
            "--type=merge",
            f"--patch={patch}",
        )

    async def get(self) -> Body:
        return await asyncio.to_thread(self.flux.server.read, f"{KUSTOMIZATIONS}/{self.name}")

    async def reconciled(self) -> Body:
        """A reconciliation that began after this call, and how it ended."""
        asked = datetime.now(UTC).isoformat()
        note = f"reconcile.fluxcd.io/requestedAt={asked}"
        await self._kubectl("annotate", "--overwrite", "kustomization", self.name, note)
        return await self.until(
            lambda body: body.get("status", {}).get("lastHandledReconcileAt") == asked,
            "a reconciliation",
        )

    async def ready(self, revision: str) -> Body:
        """Waits until a revision is applied and all that it holds is well."""
        return await self.until(
            lambda body: (
                said(body) == ("True", "ReconciliationSucceeded")
                and body["status"]["lastAppliedRevision"].endswith(revision)
            ),
            f"{revision[:8]} to be applied and healthy",
        )

    async def until(self, reached: Callable[[Body], bool], what: str) -> Body:
        body: Body = {}
        for _ in range(WAIT_SECONDS * 5):
            body = await self.get()
            if reached(body):
                return body
            self.flux.check()
            await asyncio.sleep(0.2)
        shown = json.dumps(body.get("status"), indent=1)
        raise AssertionError(f"waited {WAIT_SECONDS} s for {what}: Kustomization is {shown}")

    async def stop(self) -> None:
        """Takes the Kustomization away, without what it applied."""
        await self._kubectl(
            "patch", "kustomization", self.name, "--type=merge", '--patch={"spec":{"prune":false}}'
        )
        await self._kubectl("delete", "kustomization", self.name)
        await self._kubectl("delete", "gitrepository", self.name)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The directory of archives over loopback HTTP."""
        app = web.Application()
        app.router.add_static("/", self.directory)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield
        finally:
            await runner.cleanup()

    async def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        call = self.team.apiserver.kubectl
        return await asyncio.to_thread(call, "-n", FLUX_NAMESPACE, *arguments, stdin=stdin)


def said(body: Body) -> tuple[str, str]:
    """Status and reason of Ready, once the present generation was looked at."""
    status = body.get("status", {})
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        return "Unknown", "NotObserved"
    ready = [c for c in status.get("conditions", []) if c["type"] == "Ready"]
    return (ready[0]["status"], ready[0]["reason"]) if ready else ("Unknown", "NotSet")
