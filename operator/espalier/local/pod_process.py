"""One pod as a process: its command, environment and end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from espalier.kube.objects import Body
from espalier.local.layout import Layout, MappingError

GRACE_SECONDS = 20.0
# A kubelet reads this much of a log at most.
LOG_BYTES = 2048
# prctl(2). Loaded before any fork.
_LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
# The entry points of the images.
DEFAULT = {
    "trainer": ("python", "-m", "espalier.trainer"),
    "rollout": ("python", "-m", "espalier.sampler"),
    "runner": ("python", "-m", "espalier.runner"),
}
# Our only init containers copy a model's files out of its image.
COPIED = "/models/."


@dataclass(frozen=True)
class ProcessPlan:
    """How a pod runs on this machine: directories to copy first, command, environment."""

    copies: tuple[tuple[Path, Path], ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    message: Path


def plan(
    pod: str,
    role: str,
    spec: Body,
    *,
    uid: str,
    address: str,
    layout: Layout,
    config: dict[str, dict[str, str]],
) -> ProcessPlan:
    """The plan for a pod of a role, with its uid, at a loopback address.

    Raises:
        MappingError: an image, a Secret or a ConfigMap is not on this machine.
    """
    _refuse_companions(spec)
    mounts = layout.mounts(pod, spec, config)
    container = spec["containers"][0]
    command = [*container.get("command", DEFAULT.get(role, ())), *container.get("args", ())]
    if role == "trainer":
        command += ["--host", address]
    sources = _Sources({"metadata.uid": uid}, layout, config)
    given = {entry["name"]: sources.value(entry) for entry in container.get("env", ())}
    here = {name: _moved(value, mounts) for name, value in given.items()}
    message = layout.root / "pods" / pod / "termination-log"
    message.parent.mkdir(parents=True, exist_ok=True)
    own = {
        "ESPALIER_HOST": address,
        "ESPALIER_TERMINATION_LOG": str(message),
        "TMPDIR": here.get("HOME", "/tmp"),
        # Downloads are shared by every model and kept between starts.
        "HF_HOME": os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")),
    }
    return ProcessPlan(
        copies=tuple(_copy(init, layout, mounts) for init in spec.get("initContainers", ())),
        # The interpreter is this machine's; its arguments are the pod's, whose paths are mapped.
        command=(sys.executable, *(_moved(part, mounts) for part in command[1:])),
        environment={**os.environ, **here, **own},
        message=message,
    )


@dataclass(frozen=True)
class _Sources:
    """The sources of a variable: a field of the pod, a key of a Secret or of a ConfigMap."""

    fields: dict[str, str]
    layout: Layout
    config: dict[str, dict[str, str]]

    def value(self, entry: Body) -> str:
        source = entry.get("valueFrom", {})
        if reference := source.get("configMapKeyRef"):
            return self._configured(reference["name"], reference["key"])
        if reference := source.get("secretKeyRef"):
            return self.layout.secret(reference["name"], reference["key"])
        if reference := source.get("fieldRef"):
            return self.fields[reference["fieldPath"]]
        return str(entry["value"])

    def _configured(self, name: str, key: str) -> str:
        entries = self.config.get(name, {})
        if key not in entries:
            raise MappingError(f"ConfigMap {name} with key {key} is in no manifest: add it")
        return entries[key]


def _refuse_companions(spec: Body) -> None:
    """Here a pod is one process: what must run beside it, and cannot reach it, has no place."""
    for init in spec.get("initContainers", ()):
        if init.get("restartPolicy") == "Always":
            raise MappingError(
                f"spec.taskset: image {init['image']} runs in a container beside the runner, and "
                "espalier dev starts none: use a cluster, or train from a script (driver: Client)"
            )


def _copy(init: Body, layout: Layout, mounts: dict[str, Path]) -> tuple[Path, Path]:
    source = layout.images.get(init["image"])
    if source is None:
        raise MappingError(
            f"image {init['image']} is not on this machine: give --image {init['image']}=DIRECTORY "
            "with the model's files"
        )
    if not source.is_dir():
        raise MappingError(f"--image {init['image']}={source}: that is not a directory")
    return source, Path(_moved(init["command"][-1].rstrip("/"), mounts))


def _moved(text: str, mounts: dict[str, Path]) -> str:
    """The path on this machine that stands for one inside the pod; any other text unchanged."""
    for path, place in mounts.items():
        if text == path or text.startswith(f"{path}/"):
            return f"{place}{text.removeprefix(path)}"
    return text


def _end_with_parent() -> None:
    """Runs in the child: it gets SIGTERM when espalier dev dies, so no trainer outlives it."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Running:
    """A process that was started for a pod."""

    def __init__(
        self, process: asyncio.subprocess.Process, message: Path, log: Path, begins: int
    ) -> None:
        self._process = process
        self._message = message
        # The log has the lines of every start of the pod; this start's begin here.
        self._log = log
        self._begins = begins

    @classmethod
    async def start(cls, planned: ProcessPlan, log: Path) -> Running:
        """Copies the init containers' directories, then starts the process in its own session."""
        for source, target in planned.copies:
            await asyncio.to_thread(shutil.copytree, source, target, dirs_exist_ok=True)
        planned.message.write_text("")
        with log.open("ab") as output:
            begins = output.tell()
            process = await asyncio.create_subprocess_exec(
                *planned.command,
                env=planned.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C in the terminal must not reach the pods: espalier dev ends them in order.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        return cls(process, planned.message, log, begins)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code as a shell reports it; None while it runs."""
        code = self._process.returncode
        return code if code is None or code >= 0 else 128 - code

    @property
    def message(self) -> str:
        """Its termination message; if it failed without one, the end of its log, as a kubelet does.

        That is terminationMessagePolicy FallbackToLogsOnError, which every pod of ours has.
        """
        message = self._message.read_text()
        if message or not self.code:
            return message
        size = self._log.stat().st_size
        with self._log.open("rb") as lines:
            lines.seek(max(self._begins, size - LOG_BYTES))
            return lines.read(LOG_BYTES).decode(errors="replace")

    async def stop(self) -> None:
        """Ends the process with SIGTERM, and with SIGKILL after the grace period."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
