"""Turns tokens into text with the tokenizer of a base."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError, Stored

logger = logging.getLogger(__name__)


class Detokenizer:
    """Loads the tokenizer on first use; a base without one yields no text."""

    def __init__(self, store: CheckpointStore, base: str) -> None:
        self._store, self._base = store, base
        # At most the vocabulary, of which a run uses a small part.
        self._spelt: dict[int, str] = {}

    def text(self, tokens: Sequence[int], *, special: bool) -> str | None:
        """The text of tokens, with or without ``special`` ones such as the ends of turns."""
        if self._tokenizer is None:
            return None
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=not special)
        return text

    def texts(self, tokens: Sequence[Any]) -> list[str] | None:
        """The text of each token alone, special ones too; None for what are no tokens of it.

        A character that several tokens make is shown as U+FFFD in each of them.
        """
        if self._tokenizer is None:
            return None
        known = range(len(self._tokenizer))
        if not all(type(token) is int and token in known for token in tokens):
            return None
        for token in set(tokens) - self._spelt.keys():
            self._spelt[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return [self._spelt[token] for token in tokens]

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            with tempfile.TemporaryDirectory() as copy:
                _copy(self._store.open("base", self._base), Path(copy))
                return AutoTokenizer.from_pretrained(
                    copy, local_files_only=True, trust_remote_code=False
                )
        except (OSError, ValueError, DigestError) as error:
            logger.warning("no tokenizer, so rollouts are kept without text: %s", error)
            return None


def _copy(base: Stored, directory: Path) -> None:
    """Copies what is no weight, each file read once and hashed; raises DigestError.

    The base was verified when the process started, which may be days ago.
    """
    for name, entry in base.manifest["files"].items():
        if Path(name).match("*.safetensors"):
            continue
        content = (base.path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise DigestError(f"{name} of base {base.digest} was altered")
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
