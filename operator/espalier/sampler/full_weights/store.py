"""Full weights on the volume: the base's, and those of its checkpoints of adapter type Full.

A server swaps them in place, so new weights must fit the tensors it has. This is checked here, by
the files' headers, before the engine is touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from espalier.core import names
from espalier.sampler.verified_files import (
    StoreError,
    noted_before,
    read_manifest,
    refuse_strange,
    verify_file,
)
from espalier.sampler.verified_store import VerifiedCheckpoints, verify_base
from espalier.unchanged import Noted

INDEX = "model.safetensors.index.json"
# Files may omit a weight that is tied to another one, and tables that are computed.
TIED_HEAD = "lm_head.weight"
COMPUTED = "rotary_emb.inv_freq"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weights:
    """Verified weights: their immutable name (``base`` or ``<slug>@<12 hex>``) and their files.

    ``noted``: what they were before they were hashed, for who loads them to look again afterwards.
    """

    name: str
    files: tuple[Path, ...]
    noted: Noted


class FullStore(VerifiedCheckpoints):
    """Sets of full weights of one base, ``noted`` before it was hashed at the start.

    ``tied``: its head is its embedding.
    """

    def __init__(self, volume: Path, base: str, *, noted: Noted, tied: bool) -> None:
        super().__init__(volume, base)
        self._noted = noted
        self._tied = tied

    def resolve(self, name: str) -> Weights:
        """The verified weights of a name; raises StoreError.

        Reads and hashes the checkpoint's weights, so call it from a thread. The base's were hashed
        at the start (``verify_base``), and are again where somebody touched them since.
        """
        if name == names.BASE:
            if not self._noted.stands():
                self._noted = verify_base(self._noted.directory)
            return self.base()
        directory, manifest = self.open(name)
        if manifest.get("adapter_type") != "Full":
            raise StoreError(
                "NotFull",
                f"{name} is a checkpoint of adapter type LoRA, this server serves full weights",
                "name a checkpoint of a model whose spec.adapter.type is Full",
            )
        noted = noted_before(directory)
        listed = _weight_files(directory, manifest)
        for file in listed:
            verify_file(directory, file, manifest)
        refuse_strange(noted)
        files = tuple(directory / file for file in listed)
        self._check_fit(name, files)
        return Weights(name, files, noted)

    def base(self) -> Weights:
        """The base's weights as they were last hashed; who loads them again calls ``resolve``."""
        return Weights(names.BASE, self._files_of_base(), self._noted)

    def _files_of_base(self) -> tuple[Path, ...]:
        directory = self._noted.directory
        manifest = read_manifest(directory, "base")
        return tuple(directory / file for file in _weight_files(directory, manifest))

    def _check_fit(self, name: str, files: tuple[Path, ...]) -> None:
        """Every tensor of the base must be there, in its shape, and no other."""
        own, base = _shapes(files), _shapes(self._files_of_base())
        expected = {
            tensor: shape
            for tensor, shape in base.items()
            if tensor in own or not self._may_be_absent(tensor)
        }
        wrong = sorted(t for t in own.keys() | expected.keys() if own.get(t) != expected.get(t))
        if wrong:
            first = wrong[0]
            raise StoreError(
                "WeightsDoNotFit",
                f"{name} and its base differ in the presence or shape of {len(wrong)} tensors, "
                f"among them {first}: {own.get(first)}, in the base {base.get(first)}",
                "name a checkpoint that was trained from this base",
            )

    def _may_be_absent(self, tensor: str) -> bool:
        return tensor.endswith(COMPUTED) or (self._tied and tensor == TIED_HEAD)


def _weight_files(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The weight files of a Hugging Face model: those of its index, or the only ones."""
    listed = manifest.get("files", {})
    if INDEX in listed:
        verify_file(directory, INDEX, dict(manifest))
        indexed = set(json.loads((directory / INDEX).read_bytes())["weight_map"].values())
        found = sorted(file for file in indexed if file in listed)
        complete = len(found) == len(indexed)
    else:
        found = sorted(f for f in listed if f.endswith(".safetensors") and "/" not in f)
        complete = bool(found)
    if not complete:
        raise StoreError(
            "WeightsMissing",
            f"{directory.name} does not list all its files of weights in safetensors",
            "export the model again, or import a base that is saved as safetensors",
        )
    return found


def _shapes(files: tuple[Path, ...]) -> Shapes:
    """Shapes of all tensors by name; reads headers only."""
    found: Shapes = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                names_ = opened.keys()
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in names_}
        except (OSError, SafetensorError) as error:
            raise StoreError(
                "Unreadable", f"{file.name} of {file.parent.name}: {error}", "restore the file"
            ) from error
    return found
