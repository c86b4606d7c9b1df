"""Reads the objects of an ``espalier dev`` from its state directory, in place of kubectl."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from espalier.api.trainablemodel import TrainableModel
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.local.layout import NAMESPACE, Layout


class LocalObjects(Kubectl):
    """The objects as they are, or as they were when ``espalier dev`` ended.

    They change only with their files: every edit is refused with the place to make it.
    """

    def __init__(self, state: Path, namespace: str | None) -> None:
        if namespace not in (None, NAMESPACE):
            raise CliError(
                f"espalier dev has no namespace {namespace}, only {NAMESPACE}",
                "usage",
                "Leave --namespace out, or unset ESPALIER_LOCAL to read from the cluster",
            )
        super().__init__(NAMESPACE)
        self._layout = Layout(state, {})

    @property
    def api_keys(self) -> Path:
        """The file of the API keys."""
        return self._layout.api_keys

    def volume(self, model: TrainableModel) -> Path | None:
        """The directory that stands for the model's claim."""
        return self._layout.volume(model.spec.storage.persistent_volume_claim.claim_name)

    def require_running(self) -> None:
        """See Kubectl.

        Raises:
            CliError: no ``espalier dev`` works on these objects.
        """
        if not self._layout.in_use():
            raise CliError(
                f"no espalier dev runs over {self._layout.root}: nothing will change",
                suggestion="Start espalier dev with its directory of manifests again",
            )

    def exists(self, kind: str, name: str) -> bool:
        """See Kubectl."""
        return name in self._names(kind)

    def call(self, *arguments: str, stdin: str = "", seconds: float = 0.0) -> str:
        """Refuses, because this machine has no cluster to ask."""
        del stdin, seconds
        raise self._refusal(arguments[0])

    @contextmanager
    def stream(self, *arguments: str) -> Iterator[IO[bytes]]:
        """Refuses, as ``call``."""
        raise self._refusal(arguments[0])
        yield

    def _refusal(self, verb: str) -> CliError:
        if verb in ("create", "patch"):
            return CliError(
                "the objects of espalier dev are those of its files",
                "usage",
                "Edit a file in its directory of manifests: it is applied as it is saved",
            )
        return CliError(
            f"espalier dev has no pods for kubectl {verb}",
            "usage",
            f"Their logs are in {self._layout.root / 'logs'}",
        )

    def _names(self, kind: str) -> list[str]:
        return [str(body["metadata"]["name"]) for body in self._list(kind)]

    def _one(self, kind: str, name: str, *, managed: bool = False) -> dict[str, Any]:
        del managed
        named = [body for body in self._list(kind) if body["metadata"]["name"] == name]
        if not named:
            raise CliError(f"{kind} {name!r} is not in {self._layout.root}", "not_found")
        return named[0]

    def _list(
        self, kind: str, labels: Mapping[str, str] | None = None, *, managed: bool = False
    ) -> list[dict[str, Any]]:
        del managed
        singular = kind.partition(".")[0].removesuffix("s")
        wanted = (labels or {}).items()
        return [
            body
            for body in self._read()
            if body["kind"].lower() == singular
            and wanted <= body["metadata"].get("labels", {}).items()
        ]

    def _read(self) -> list[dict[str, Any]]:
        try:
            bodies: list[dict[str, Any]] = json.loads(self._layout.objects.read_text())
        except OSError as error:
            raise CliError(
                f"{self._layout.objects} cannot be read: {error.strerror}",
                "not_found",
                "--local takes the directory that espalier dev printed as ESPALIER_LOCAL",
            ) from error
        return bodies
