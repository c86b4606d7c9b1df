"""Where things lie on this machine, and how a pod's paths become them."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espalier.kube.objects import Body


class MappingError(Exception):
    """Something that a pod needs is not on this machine; the message says what to give."""


@dataclass(frozen=True)
class Layout:
    """The directory of a local Espalier.

    Attributes:
        root: holds ``volumes/<claim>``, ``pods/<pod>``, ``logs``, ``token``, the keys and the
            objects.
        images: by reference, the directory with what the image has under ``/models``.
        secrets: by name and key of a Secret, what it holds.
    """

    root: Path
    images: dict[str, Path]
    secrets: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def objects(self) -> Path:
        """What an API server would keep."""
        return self.root / "objects.json"

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

    def secret(self, name: str, key: str) -> str:
        """What a key of a Secret holds; MappingError if it was not given."""
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
                found[mount["mountPath"]] = place / mount.get("subPath", "")
        if "/tmp" in found:
            found["/tmp"] = self._temporary(pod)
        # The memory of this machine is shared already.
        found.pop("/dev/shm", None)
        return found

    def _volume(self, pod: str, volume: Body, config: dict[str, dict[str, str]]) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            place: Path = self.root / "volumes" / claim["claimName"]
            place.mkdir(parents=True, exist_ok=True)
            return place
        place = self.root / "pods" / pod / volume["name"]
        place.mkdir(parents=True, exist_ok=True)
        if source := volume.get("configMap"):
            if source["name"] not in config:
                raise MappingError(f"ConfigMap {source['name']} is in no manifest: add it")
            for key, text in config[source["name"]].items():
                (place / key).write_text(text)
        if "projected" in volume:
            (place / "token").write_text(self.token())
        return place

    def _temporary(self, pod: str) -> Path:
        """Near the root of the file system: a Unix socket's path has at most 107 characters."""
        name = hashlib.sha256(f"{self.root}/{pod}".encode()).hexdigest()[:12]
        place = Path(tempfile.gettempdir()) / f"espalier-{name}"
        place.mkdir(mode=0o700, exist_ok=True)
        return place

    def _secret(self, name: str, make: Callable[[], str]) -> str:
        path = self.root / name
        if not path.is_file():
            self.root.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(make())
        return path.read_text()
