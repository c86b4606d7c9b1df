"""The Lua scripts of gitops/argocd, run by Argo CD's own engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from dev.apiserver import BINARIES
from dev.gitops_customizations import LUA

Answer = dict[str, Any]


def ask(questions: Sequence[Answer]) -> list[Answer]:
    """What the engine answers: health, actions or impacted objects, or an error each."""
    binary = BINARIES / "argocd"
    assert binary.exists(), f"argocd is not in {BINARIES}: run dev/tools.sh gitops"
    done = subprocess.run(
        [binary, "lua"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answers: list[Answer] = json.loads(done.stdout)
    return answers


def health(body: Answer) -> Answer:
    return {"ask": "health", "script": (LUA / "_/health.lua").read_text(), "object": body}


def discovery(body: Answer) -> Answer:
    script = LUA / body["kind"] / "actions/discovery.lua"
    return {"ask": "discovery", "script": script.read_text(), "object": body}


def action(name: str, body: Answer) -> Answer:
    script = LUA / body["kind"] / "actions" / name / "action.lua"
    return {"ask": "action", "script": script.read_text(), "object": body}


def run_action(name: str, body: Answer) -> Answer:
    (answer,) = ask([action(name, body)])
    return answer
