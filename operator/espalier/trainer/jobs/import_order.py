"""What an import is asked for: the arguments that importer and place are both given."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espalier.api.model.adapter import Adapter
from espalier.core.volume import imports_of

BASE_FIELD = "spec.source.base"
ADAPTER_FIELD = "spec.source.adapter"
HUB = "huggingFace"
REPORT = "report.json"
# Where the adapter lies as the files of a checkpoint.
CONVERTED = "adapter"
_NAMED = "OWNER/NAME@REVISION"


@dataclass(frozen=True)
class Source:
    """Where base or adapter come from: a directory, or a repository of the hub."""

    field: str
    directory: Path | None
    hugging_face: str

    @property
    def staged(self) -> str:
        """The name of the folder that it is brought to; another source has another."""
        text = f"{self.field} {self.hugging_face or self.directory}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def revision(self) -> str:
        """Of the repository; empty for a directory."""
        return self.hugging_face.partition("@")[2]


@dataclass(frozen=True)
class Order:
    """An import of a base, an adapter, or both.

    ``base`` is None where ``digest`` names one that is on the volume. ``model`` is whose step 0 the
    adapter becomes, empty without one. ``staging`` is the folder that all is brought to.
    """

    volume: Path
    staging: Path
    base: Source | None
    digest: str
    adapter: Source | None
    model: str
    wanted: Adapter
    chat_template: str

    @property
    def sources(self) -> tuple[Source, ...]:
        """Base and adapter, as far as they are to be brought."""
        return tuple(source for source in (self.base, self.adapter) if source is not None)

    @classmethod
    def read(cls, arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Order:
        """The order of a command line; SystemExit for one that is incomplete."""
        parser = _parser()
        given = parser.parse_args(arguments)
        adapter = _source(ADAPTER_FIELD, given.adapter, given.adapter_hugging_face)
        if (adapter is not None) != bool(given.model) or (given.base and adapter is None):
            parser.error("an adapter needs --model, and --base and --model need an adapter")
        volume = Path(environment.get("ESPALIER_VOLUME", "/weights"))
        base = _source(BASE_FIELD, given.directory, given.hugging_face)
        # Imports by hand of two bases have a folder each.
        by_hand = given.model or f"by-hand-{base.staged if base is not None else ''}"
        of = environment.get("ESPALIER_MODEL", "") or by_hand
        return cls(
            volume=volume,
            staging=imports_of(volume, of),
            base=base,
            digest=given.base,
            adapter=adapter,
            model=given.model,
            wanted=Adapter.model_validate_json(environment.get("ESPALIER_ADAPTER", "{}")),
            chat_template=environment.get("ESPALIER_CHAT_TEMPLATE", ""),
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Brings a base model to the volume")
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--directory", type=Path)
    base.add_argument("--hugging-face", metavar=_NAMED, default="")
    base.add_argument(
        "--base", metavar="DIGEST", default="", help="a base that is on the volume already"
    )
    adapter = parser.add_mutually_exclusive_group()
    adapter.add_argument("--adapter", type=Path, help="a LoRA adapter of PEFT; needs --model")
    adapter.add_argument("--adapter-hugging-face", metavar=_NAMED, default="")
    parser.add_argument("--model", default="", help="whose step 0 the adapter becomes")
    return parser


def _source(field: str, directory: Path | None, hugging_face: str) -> Source | None:
    if directory is None and not hugging_face:
        return None
    return Source(f"{field}.{HUB}" if hugging_face else field, directory, hugging_face)
