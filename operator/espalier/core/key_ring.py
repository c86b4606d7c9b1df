"""When a signing key is replaced, so that no pod restarts and no call is refused meanwhile.

Three keys overlap. The next one is published long before it signs, because a kubelet brings a
changed ConfigMap to its pods within minutes; the one before stays published until the last token
that it signed has expired and the gateway has read the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

# From its publication until a key may sign: kubelets look once a minute, give or take their caches.
PUBLISHED_SECONDS = 300.0
# From its replacement until a key is no longer believed: the gateway reads its key once a minute,
# and a token lives for two.
OVERLAP_SECONDS = 600.0


@dataclass(frozen=True)
class KeyRing:
    """The keys of one subject. Private keys and ``previous``, a public one, are PEM.

    Attributes:
        current: signs.
        following: will sign next; empty where a ring is new.
        following_since: when it was made, in seconds since 1970.
        previous: signed before; empty once nobody needs it.
        changed: when ``current`` became that.
        answered: the request to rotate that was met last.
    """

    current: str
    following: str = ""
    following_since: float = 0.0
    previous: str = ""
    changed: float = 0.0
    answered: str = ""


def turned(
    ring: KeyRing,
    *,
    requested: str,
    rotate_after: float,
    now: float,
    make: Callable[[], str],
    public: Callable[[str], str],
) -> KeyRing:
    """The ring as it must be now.

    Args:
        ring: as it is.
        requested: what a person wrote to ask for a rotation; empty if nobody did.
        rotate_after: the age in seconds at which a key is replaced unasked.
        now: seconds since 1970.
        make: a new private key.
        public: the public half of a private key.
    """
    if not ring.following:
        # A ring of before rotation counts as new: nobody knows its age.
        changed = ring.changed or now
        return replace(ring, following=make(), following_since=now, changed=changed)
    asked = requested not in ("", ring.answered)
    due = asked or now - ring.changed >= rotate_after
    if due and now - ring.following_since >= PUBLISHED_SECONDS:
        return KeyRing(
            current=ring.following,
            following=make(),
            following_since=now,
            previous=public(ring.current),
            changed=now,
            answered=requested,
        )
    if ring.previous and now - ring.changed >= OVERLAP_SECONDS:
        return replace(ring, previous="")
    return ring


def published(ring: KeyRing, public: Callable[[str], str]) -> tuple[str, ...]:
    """The public keys (PEM) to believe, the one that signs first."""
    held = [public(key) for key in (ring.current, ring.following) if key]
    return (*held, *([ring.previous] if ring.previous else []))
