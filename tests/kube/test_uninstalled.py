"""What docs/operations/uninstalling.md says to do with finalizers once the operator is gone."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

from dev.apiserver import BINARIES, ROOT, ApiServer
from tests.core.objects import checkpoint

from espalier.core.checkpoints.disposal import FINALIZER
from espalier.kube.apiserver import KubernetesCluster
from espalier.kube.objects import ObjectKey

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def commands() -> str:
    """The last commands of the page."""
    return BLOCK.findall((ROOT / "docs/operations/uninstalling.md").read_text())[-1]


async def test_the_documented_commands_let_go_what_hangs_in_deletion(
    apiserver: ApiServer, kubernetes: KubernetesCluster, namespace: str
) -> None:
    key = ObjectKey("Checkpoint", namespace, "tiny-000001")
    metadata = {"name": key.name, "namespace": namespace, "finalizers": [FINALIZER]}
    spec = checkpoint("tiny").spec.wire()
    await kubernetes.create("Checkpoint", {"metadata": metadata, "spec": spec})
    await kubernetes.delete(key)
    held = await kubernetes.get(key)
    assert held is not None
    assert held["metadata"]["deletionTimestamp"]
    environment = {
        **os.environ,
        "KUBECONFIG": str(apiserver.kubeconfig),
        "PATH": f"{Path(BINARIES)}:{os.environ['PATH']}",
    }
    await asyncio.to_thread(
        subprocess.run, ["bash", "-c", commands()], env=environment, check=True, timeout=60
    )
    assert await kubernetes.get(key) is None
