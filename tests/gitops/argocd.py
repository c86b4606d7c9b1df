"""One Application of a real Argo CD, made from examples/gitops/argocd.yaml."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from dev.apiserver import binary
from dev.gitops import ARGOCD_NAMESPACE, ArgoCd
from tests.gitops.repository import ROOT, Repository

from espalier.kube.objects import Body

EXAMPLE = ROOT / "examples/gitops/argocd.yaml"
APPLICATIONS = f"/apis/argoproj.io/v1alpha1/namespaces/{ARGOCD_NAMESPACE}/applications"
WAIT_SECONDS = 120


class Application:
    """Its every state is recorded from the beginning, as an API watch shows it."""

    def __init__(
        self,
        argocd: ArgoCd,
        repository: Repository,
        namespace: str,
        record: Path,
        **annotations: str,
    ) -> None:
        self.argocd = argocd
        self.repository = repository
        self.name = namespace
        self.record = record
        self._annotations = {
            f"argocd.argoproj.io/{name.replace('_', '-')}": value
            for name, value in annotations.items()
        }
        self._watch: subprocess.Popen[bytes] | None = None

    async def create(self, *options: str) -> None:
        """Applies project and Application; ``options`` are sync options."""
        project, application = yaml.safe_load_all(EXAMPLE.read_text())
        project["metadata"]["name"] = self.name
        project["spec"]["sourceRepos"] = [self.repository.url]
        project["spec"]["destinations"][0]["namespace"] = self.name
        application["metadata"]["name"] = self.name
        application["metadata"]["annotations"] = self._annotations
        spec = application["spec"]
        spec["project"] = self.name
        spec["source"]["repoURL"] = self.repository.url
        spec["destination"]["namespace"] = self.name
        if options:
            spec["syncPolicy"]["syncOptions"] = list(options)
        bundle = {"apiVersion": "v1", "kind": "List", "items": [project, application]}
        await self._kubectl("apply", "-f", "-", stdin=json.dumps(bundle))
        self._watch = _watching(self.argocd.server.kubeconfig, self.name, self.record)

    async def get(self) -> Body:
        return await asyncio.to_thread(self.argocd.server.read, f"{APPLICATIONS}/{self.name}")

    async def refresh(self) -> None:
        """Asks for a comparison with the newest commit now."""
        note = "argocd.argoproj.io/refresh=normal"
        await self._kubectl("annotate", "--overwrite", "application", self.name, note)

    async def compared(self) -> Body:
        """A comparison that began after this call."""
        await self.refresh()
        return await self.until(
            lambda app: "argocd.argoproj.io/refresh" not in app["metadata"]["annotations"],
            "a comparison",
        )

    async def until(self, reached: Callable[[Body], bool], what: str) -> Body:
        body: Body = {}
        for _ in range(WAIT_SECONDS * 5):
            body = await self.get()
            if reached(body):
                return body
            self.argocd.check()
            await asyncio.sleep(0.2)
        shown = json.dumps(body.get("status"), indent=1)
        raise AssertionError(f"waited {WAIT_SECONDS} s for {what}: Application is {shown}")

    async def synced(self, revision: str, health: str = "Healthy") -> Body:
        """Waits until a commit is applied and the Application is well."""
        await self.refresh()

        def reached(app: Body) -> bool:
            status = app.get("status", {})
            return bool(
                status.get("sync", {}).get("status") == "Synced"
                and status["sync"].get("revision") == revision
                and status.get("health", {}).get("status") == health
                and operation(app).get("phase") == "Succeeded"
            )

        return await self.until(reached, f"{revision[:8]} to be Synced and {health}")

    async def sync_to(self, revision: str) -> Body:
        """What ``argocd app rollback`` does: automation off, a sync to an older commit."""
        await self.patch(spec={"syncPolicy": {"automated": None}})
        await self.patch(operation={"sync": {"revision": revision, "prune": True}})
        return await self.until(
            lambda app: (
                operation(app).get("phase") == "Succeeded"
                and operation(app)["syncResult"]["revision"] == revision
            ),
            f"the sync to {revision[:8]}",
        )

    async def approve_pruning(self) -> None:
        """What the button of Argo CD does for Prune=confirm."""
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        note = f"argocd.argoproj.io/deletion-approved={when}"
        await self._kubectl("annotate", "--overwrite", "application", self.name, note)

    async def patch(self, **changes: Any) -> None:
        """A merge patch, as the argocd command sends them."""
        text = json.dumps(changes)
        await self._kubectl("patch", "application", self.name, "--type=merge", f"--patch={text}")

    async def stop(self) -> None:
        """Ends the record and takes the Application away, without what it applied."""
        if self._watch is None:
            return
        self._watch.terminate()
        await asyncio.to_thread(self._watch.wait)
        await self._kubectl("delete", "application", self.name, "--cascade=orphan")

    def states(self) -> list[Body]:
        """Every state that it went through, oldest first, without repetitions."""
        seen: list[Body] = []
        for body in _documents(self.record.read_text()):
            state = _state(body)
            if not seen or seen[-1] != state:
                seen.append(state)
        return seen

    async def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        call = self.argocd.server.kubectl
        return await asyncio.to_thread(call, "-n", ARGOCD_NAMESPACE, *arguments, stdin=stdin)


def operation(app: Body) -> Body:
    """Its present or last sync; empty while Argo CD has asked for one that has not begun."""
    found: Body = app.get("status", {}).get("operationState", {})
    return found


def _state(app: Body) -> Body:
    status = app.get("status", {})
    sync = operation(app)
    return {
        "sync": status.get("sync", {}).get("status", ""),
        "health": status.get("health", {}).get("status", ""),
        "revision": status.get("sync", {}).get("revision", ""),
        "phase": sync.get("phase", ""),
        "operation": sync.get("startedAt", ""),
        "message": sync.get("message", ""),
        "history": len(status.get("history", [])),
    }


def _watching(kubeconfig: Path, name: str, record: Path) -> subprocess.Popen[bytes]:
    access = ("--kubeconfig", str(kubeconfig), "-n", ARGOCD_NAMESPACE)
    command = ["setpriv", "--pdeathsig", "KILL", str(binary("kubectl")), *access]
    with record.open("wb") as output:
        return subprocess.Popen(
            [*command, "get", "application", name, "--watch", "-o=json"], stdout=output
        )


def _documents(text: str) -> Iterator[Body]:
    """The JSON objects of a watch; the last may still be incomplete."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            body, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield body
        at += len(text[at:]) - len(text[at:].lstrip())
