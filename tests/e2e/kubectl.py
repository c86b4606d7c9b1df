"""kubectl as a user has it, with waits that name what they wait for."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]


class KubectlError(Exception):
    """kubectl exited with an error; its text is the API server's."""


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl against one namespace of one cluster."""

    binary: Path
    kubeconfig: Path
    namespace: str

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Standard output of a command; raises KubectlError."""
        command = [
            str(self.binary),
            f"--kubeconfig={self.kubeconfig}",
            f"--namespace={self.namespace}",
            *arguments,
        ]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def apply(self, *objects: Object) -> None:
        """Applies objects as a user would from files."""
        # As JSON: PyYAML writes "1e-4" without quotes, and kubectl reads that as a number.
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "-f", "-", stdin=json.dumps(items))

    def get(self, kind: str, name: str) -> Object:
        """One object; raises KubectlError if absent."""
        found: Object = json.loads(self("get", kind, name, "-o", "json", "--show-managed-fields"))
        return found

    def find(self, kind: str, name: str) -> Object | None:
        """One object or None."""
        text = self("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """Objects of a kind, by label selector."""
        items: list[Object] = json.loads(self("get", kind, "-l", selector, "-o", "json"))["items"]
        return items

    def wait(
        self, what: str, check: Callable[[], Any], timeout: float = 120, show: Iterable[str] = ()
    ) -> Any:
        """Polls until check returns something true; a timeout prints what was shown last."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if value := check():
                    return value
            except (KubectlError, KeyError, IndexError) as error:
                last: object = error
            else:
                last = None
            if time.monotonic() > deadline:
                state = "\n".join(self.describe(item) for item in show)
                raise AssertionError(
                    f"waited {timeout:.0f} s for {what}; last error: {last}\n{state}"
                )
            time.sleep(0.2)

    def describe(self, item: str) -> str:
        """What a person would look at when a wait fails."""
        try:
            return self("get", *item.split(), "-o", "yaml")
        except KubectlError as error:
            return str(error)


def condition(body: Object, kind: str) -> Object:
    """A condition by type; an empty one when absent."""
    found = [c for c in body.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {"status": "Absent", "reason": "", "message": ""}


def is_true(body: Object, kind: str) -> bool:
    """Whether a condition is True for the present generation."""
    status = body.get("status", {})
    return (
        status.get("observedGeneration") == body["metadata"]["generation"]
        and condition(body, kind)["status"] == "True"
    )


def until_ready(kubectl: Kubectl, model: str) -> None:
    """Waits until a TrainableModel is served."""
    kubectl.wait(
        f"TrainableModel {model} to be Ready",
        lambda: is_true(kubectl.get("trainablemodel", model), "Ready"),
        timeout=300,
        show=[f"trainablemodel {model}", "pods -o wide", "events"],
    )
