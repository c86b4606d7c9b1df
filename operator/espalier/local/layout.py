"""The directories of this machine, and which of them a pod's paths stand for."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from espalier.core.manifests.environment import SOCKET_PATH
from espalier.kube.objects import Body

NAMESPACE = "default"
# A process that only asks whether the state is in use also locks it for a moment.
CLAIM_TRIES, CLAIM_PAUSE_SECONDS = 10, 0.1


class MappingError(Exception):
    """Something that a pod needs is not on this machine; the message says which option to give."""


class StartError(Exception):
    """This machine lacks what ``espalier dev`` needs before it starts anything; says what to do."""


@dataclass(frozen=True)
class Layout:
    """The directory of a local Espalier.

    Attributes:
        root: holds ``volumes/<claim>``, ``pods/<pod>``, ``logs``, ``token``, the keys, the API
            keys, ``lock`` and the objects.
        images: by reference, the directory with what the image has under ``/models``.
        secrets: by name and key of a Secret, what it holds.
    """

    root: Path
    images: dict[str, Path]
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def objects(self) -> Path:
        """The file of the objects, in place of etcd."""
        return self.root / "objects.json"

    @property
    def api_keys(self) -> Path:
        """The file of the API keys, in place of their Secret."""
        return self.root / "api-keys.json"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Claims the directory for this process.

        Raises:
            StartError: another process uses it, and two would write the same volumes; or the
                directory cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("w")
        except OSError as error:
            raise StartError(
                f"{self.root} cannot be written: {error.strerror}; give another --state"
            ) from error
        with lock:
            for attempt in range(1, CLAIM_TRIES + 1):
                if _locked(lock, fcntl.LOCK_EX):
                    break
                if attempt == CLAIM_TRIES:
                    raise StartError(
                        f"another espalier dev works in {self.root}: stop it, or give --state"
                    )
                time.sleep(CLAIM_PAUSE_SECONDS)
            yield

    def in_use(self) -> bool:
        """Whether an ``espalier dev`` works here now."""
        try:
            with self._lock.open() as lock:
                return not _locked(lock, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def volume(self, claim: str) -> Path:
        """The directory that stands for a claim."""
        return self.root / "volumes" / claim

    def token(self) -> str:
        """The token of the one user; made once."""
        return self._secret("token", lambda: secrets.token_urlsafe(24))

    def private_key(self, of: str, make: Callable[[], str]) -> str:
        """The signing key (PEM) of the operator or the gateway; made once."""
        return self._secret(f"{of}-key.pem", make)

    def log(self, pod: str) -> Path:
        """Where a pod's processes write."""
        path = self.root / "logs" / f"{pod}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def note(self, pod: str, line: str) -> None:
        """Writes a line of ``espalier dev``'s own into a pod's log."""
        with self.log(pod).open("a") as log:
            log.write(f"espalier dev: {line}\n")

    def secret(self, name: str, key: str) -> str:
        """The value of a Secret's key; MappingError if it was not given."""
        if (name, key) not in self.secrets:
            raise MappingError(
                f"Secret {name} is not on this machine: give --secret {name}/{key}=VARIABLE with "
                f"the environment variable that holds {key}"
            )
        return self.secrets[name, key]

    def mounts(self, pod: str, spec: Body, config: dict[str, dict[str, str]]) -> dict[str, Path]:
        """By mount path of the pod's containers, the directory that stands for it.

        Args:
            pod: its name.
            spec: of the pod.
            config: the data of every ConfigMap, by name.

        Raises:
            MappingError: a ConfigMap is not there.
        """
        sources = {volume["name"]: volume for volume in spec.get("volumes", ())}
        found: dict[str, Path] = {}
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            for mount in container.get("volumeMounts", ()):
                place = self._volume(pod, sources[mount["name"]], config)
                part = mount.get("subPath", "")
                found[mount["mountPath"]] = place / part
                # A part that is where it lies in its volume: no wall hides the rest from a process.
                if part and mount["mountPath"].endswith(f"/{part}"):
                    found[mount["mountPath"].removesuffix(f"/{part}")] = place
        if "/tmp" in found:
            found["/tmp"] = self._temporary(pod)
        sockets = {p for p in found if p == SOCKET_PATH or p.startswith(f"{SOCKET_PATH}-")}
        # Beside the run's own the runner finds those of evaluations, also where it has none.
        for path in sockets | {SOCKET_PATH} if sockets else ():
            found[path] = self._temporary(pod) / Path(path).name
            found[path].mkdir(mode=0o700, exist_ok=True)
        # The machine's own shared memory serves.
        found.pop("/dev/shm", None)
        return found

    def _volume(self, pod: str, volume: Body, config: dict[str, dict[str, str]]) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            place: Path = self.volume(claim["claimName"])
            place.mkdir(parents=True, exist_ok=True)
            return place
        place = self.root / "pods" / pod / volume["name"]
        place.mkdir(parents=True, exist_ok=True)
        if source := volume.get("configMap"):
            if source["name"] not in config:
                raise MappingError(f"ConfigMap {source['name']} is in no manifest: add it")
            for key, text in config[source["name"]].items():
                (place / key).write_text(text)
        for source in volume.get("projected", {}).get("sources", ()):
            if "serviceAccountToken" in source:
                (place / "token").write_text(self.token())
            if held := source.get("configMap"):
                _copy_keys(place, held, config)
        return place

    def forget_temporary(self, pod: str) -> None:
        """Removes what a pod that is gone had under ``/tmp``."""
        shutil.rmtree(self._temporary_path(pod), ignore_errors=True)

    def _temporary(self, pod: str) -> Path:
        place = self._temporary_path(pod)
        place.mkdir(mode=0o700, exist_ok=True)
        if place.is_symlink() or place.stat().st_uid != os.getuid():
            raise MappingError(f"{place} is another user's: remove it, or set TMPDIR")
        return place

    def _temporary_path(self, pod: str) -> Path:
        """Near the root of the file system: a Unix socket's path has at most 107 characters."""
        name = hashlib.sha256(f"{self.root}/{pod}".encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"espalier-{name}"

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    def _secret(self, name: str, make: Callable[[], str]) -> str:
        path = self.root / name
        if not path.is_file():
            self.root.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(make())
        return path.read_text()


def _locked(file: IO[str], kind: int) -> bool:
    """Whether the lock was free. It ends with the file, or with this process."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copy_keys(place: Path, source: Body, config: dict[str, dict[str, str]]) -> None:
    name = source["name"]
    for item in source["items"]:
        if item["key"] not in config.get(name, {}):
            raise MappingError(f"ConfigMap {name} with key {item['key']} is in no manifest: add it")
        path = place / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config[name][item["key"]])
