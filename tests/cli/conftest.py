"""A kubectl that stands for a cluster with a pod."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from tests.cli.checkpoints import manifests

# Runs what `exec` is given here, with the pod's paths moved below $POD; all else it only records.
# Where $POD/archive is, the pod's tar sends that.
KUBECTL = """#!{python}
import json, os, subprocess, sys
given, pod = sys.argv[1:], os.environ["POD"]
with open(f"{{pod}}/calls", "a") as calls:
    calls.write(json.dumps(given) + "\\n")
if "get" in given:
    print(open(f"{{pod}}/{{given[given.index('get') + 1]}}.json").read())
elif "create" in given:
    open(f"{{pod}}/created.json", "w").write(sys.stdin.read())
elif "exec" in given:
    if os.path.exists(f"{{pod}}/broken"):
        sys.exit("CheckpointUnreadable: it is corrupt: restore the volume")
    command = given[given.index("--") + 1:]
    if command[0] == "tar" and os.path.exists(f"{{pod}}/archive"):
        os.execvp("cat", ["cat", f"{{pod}}/archive"])
    if command[0] == "tar":
        moved = [word.replace("/export", f"{{pod}}/export") for word in command]
        sys.exit(subprocess.run(moved).returncode)
    out = command[command.index("--output") + 1].replace("/export", f"{{pod}}/export")
    os.makedirs(out)
    open(f"{{out}}/told.json", "w").write(json.dumps(command))
"""


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the cluster: objects to read, the pod's file system."""
    root = tmp_path / "pod"
    (root / "bin").mkdir(parents=True)
    kubectl = root / "bin" / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    checkpoint = next(m for m in manifests() if m["metadata"]["name"] == "arith-000001")
    template = {"spec": {"containers": [{"image": "registry.example/trainer:1"}]}}
    objects = {
        "checkpoints.espalier.dev": checkpoint,
        "trainablemodels.espalier.dev": {
            "metadata": {"name": "arith"},
            "spec": {
                "source": {
                    "base": {
                        "huggingFace": {"repository": "owner/name", "revision": "0" * 40},
                    }
                },
                "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
            },
        },
        "statefulsets.apps": {"spec": {"template": template}},
    }
    for kind, body in objects.items():
        (root / f"{kind}.json").write_text(json.dumps(body))
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("POD", str(root))
    return root
