"""Tinker's names: models, samplers, and paths of saved weights.

A session numbers what it makes: ``<session>:train:<n>`` is a model, ``<session>:sample:<n>`` a
sampler. A model is its own training run, and a path is ``tinker://<run>/<kind>/<name>``. The SDK
puts models together itself and takes paths apart, so the forms are fixed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

PathKind = Literal["weights", "sampler_weights"]
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_SCHEME = "tinker://"


class NameFormatError(ValueError):
    """A name of another form; the text says which form was expected."""


@dataclass(frozen=True)
class ModelId:
    """A model: the ``number``-th that a session made, from 0."""

    session: str
    number: int

    def __str__(self) -> str:
        return f"{self.session}:train:{self.number}"

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """The inverse of ``str``; raises NameFormatError."""
        return cls(*_numbered(text, "train"))


@dataclass(frozen=True)
class SamplerId:
    """A sampler: the ``number``-th that a session made, from 0."""

    session: str
    number: int

    def __str__(self) -> str:
        return f"{self.session}:sample:{self.number}"

    @classmethod
    def parse(cls, text: str) -> SamplerId:
        """The inverse of ``str``; raises NameFormatError."""
        return cls(*_numbered(text, "sample"))


@dataclass(frozen=True)
class TinkerPath:
    """Saved weights: ``weights`` with Adam's state, ``sampler_weights`` to sample from."""

    run: str
    kind: PathKind
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """As lists of checkpoints have it."""
        return f"{self.kind}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> TinkerPath:
        """The inverse of ``str``; raises NameFormatError."""
        run, _, rest = text.removeprefix(_SCHEME).partition("/")
        kind, _, name = rest.partition("/")
        for known in get_args(PathKind):
            if text.startswith(_SCHEME) and run and kind == known and is_name(name):
                return cls(run, known, name)
        raise NameFormatError(
            f"{text[:200]!r} is not tinker://<run>/weights/<name> or "
            "tinker://<run>/sampler_weights/<name>"
        )


def is_name(text: str) -> bool:
    """Whether saved weights may have this name: it is part of addresses."""
    return _NAME.fullmatch(text) is not None


def is_session(text: str) -> bool:
    """Whether a session may have this name."""
    return _SESSION.fullmatch(text) is not None


def _numbered(text: str, role: str) -> tuple[str, int]:
    session, _, rest = text.partition(":")
    found, _, number = rest.partition(":")
    if not is_session(session) or found != role or _NUMBER.fullmatch(number) is None:
        raise NameFormatError(f"{text[:200]!r} is not <session>:{role}:<number>")
    return session, int(number)
