"""Names of Tinker's API and what they mean here. Every name says all of it, so no gateway has to
remember any: a session, a model, a sampler, a path of weights. Pure.

====================  ===========================================================================
session               ``<namespace>.<16 hex>``
model                 ``<session>:train:<n>``, trained as TrainableModel ``tk-<16 hex>-<n>``;
                      ``<session>.<model>:train:<n>`` for a TrainableModel that there was before;
                      ``<namespace>.<model>`` for a TrainableModel as it is listed
sampler               ``<session>:sample:<n>:<model>@<checkpoint>``; ``base`` is the base, and an
                      empty checkpoint the head
path                  ``tinker://<model>/weights/<name>``, ``.../sampler_weights/<name>`` or
                      ``.../external_weights/<name>``; a name is one that weights were saved under,
                      or that of a Checkpoint
====================  ===========================================================================
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from espalier.gateway.world.world import NamespacedName

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SESSION = re.compile(rf"(?P<namespace>{_LABEL})\.(?P<token>[0-9a-f]{{16}})")
_MODEL = re.compile(
    rf"(?P<namespace>{_LABEL})\.(?P<token>[0-9a-f]{{16}})(?:\.(?P<model>{_LABEL}))?"
    r":train:(?P<number>[0-9]{1,9})"
)
_LISTED = re.compile(rf"(?P<namespace>{_LABEL})\.(?P<model>{_LABEL})")
_SAMPLER = re.compile(
    rf"(?P<namespace>{_LABEL})\.(?P<token>[0-9a-f]{{16}}):sample:(?P<number>[0-9]{{1,9}})"
    rf":(?P<model>{_LABEL})@(?P<ref>(?:{_LABEL})?)"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
SCHEME = "tinker://"
PREFIX = "tk-"

# The kinds of weights that can be saved, as paths name them; EXTERNAL are for download.
PathKind = Literal["weights", "sampler_weights", "external_weights"]
KINDS: dict[str, PathKind] = {kind: kind for kind in get_args(PathKind)}
EXTERNAL: Final = "external_weights"


@dataclass(frozen=True)
class Session:
    """A client's session: the namespace that its models are made in, and a token of its own."""

    namespace: str
    token: str

    def __str__(self) -> str:
        return f"{self.namespace}.{self.token}"

    @classmethod
    def read(cls, text: str) -> Session | None:
        """The session of an id; None if it is none."""
        found = _SESSION.fullmatch(text)
        return cls(found["namespace"], found["token"]) if found else None

    @classmethod
    def new(cls, namespace: str, *seeds: str) -> Session:
        """The session of these seeds: a request that is sent again names the same one."""
        return cls(namespace, hashlib.sha256("\n".join(seeds).encode()).hexdigest()[:16])


@dataclass(frozen=True)
class TinkerModel:
    """A model as a client trains it.

    Attributes:
        text: its id.
        trained: the TrainableModel.
        session: that it is trained in; None for one that is only listed.
    """

    text: str
    trained: NamespacedName
    session: Session | None = None

    def __str__(self) -> str:
        return self.text

    @classmethod
    def new(cls, session: Session, number: int, existing: str = "") -> TinkerModel:
        """The model of this number in a session; ``existing`` names a TrainableModel."""
        infix = f".{existing}" if existing else ""
        name = existing or f"{PREFIX}{session.token}-{number}"
        trained = NamespacedName(session.namespace, name)
        return cls(f"{session}{infix}:train:{number}", trained, session)

    @classmethod
    def listed(cls, trained: NamespacedName) -> TinkerModel:
        """A TrainableModel that no client of Tinker's made."""
        return cls(f"{trained.namespace}.{trained.name}", trained)

    @classmethod
    def read(cls, text: str) -> TinkerModel | None:
        """The model of an id; None if it is none."""
        if found := _MODEL.fullmatch(text):
            session = Session(found["namespace"], found["token"])
            return cls.new(session, int(found["number"]), found["model"] or "")
        if found := _LISTED.fullmatch(text):
            return cls.listed(NamespacedName(found["namespace"], found["model"]))
        return None


@dataclass(frozen=True)
class Sampler:
    """What a sampling client samples; ``ref`` as in ``slug@ref``, and empty for the head."""

    session: Session
    number: int
    model: NamespacedName
    ref: str

    def __str__(self) -> str:
        return f"{self.session}:sample:{self.number}:{self.model.name}@{self.ref}"

    @classmethod
    def read(cls, text: str) -> Sampler | None:
        """The sampler of an id; None if it is none."""
        found = _SAMPLER.fullmatch(text)
        if found is None:
            return None
        session = Session(found["namespace"], found["token"])
        model = NamespacedName(session.namespace, found["model"])
        return cls(session, int(found["number"]), model, found["ref"])


@dataclass(frozen=True)
class WeightsPath:
    """A path of weights."""

    model: TinkerModel
    kind: PathKind
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.key}"

    @property
    def key(self) -> str:
        """The path without its scheme, as statuses list it."""
        return f"{self.model}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """The path inside its model, as Tinker's API calls a checkpoint."""
        return f"{self.kind}/{self.name}"

    @classmethod
    def read(cls, text: str) -> WeightsPath | None:
        """The path of a text; None if it is none."""
        model, _, rest = text.removeprefix(SCHEME).partition("/")
        kind, _, name = rest.partition("/")
        found = TinkerModel.read(model)
        if not text.startswith(SCHEME) or found is None or kind not in KINDS or not is_name(name):
            return None
        return cls(found, KINDS[kind], name)


def is_name(text: str) -> bool:
    """Whether weights may be saved under this name."""
    return _NAME.fullmatch(text) is not None
