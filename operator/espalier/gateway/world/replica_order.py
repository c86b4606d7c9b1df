"""Which of a model's rollouts a request goes to, and which next if that one is lost. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from espalier.gateway.world.pod_addresses import PodAddress


def in_turn(pods: Sequence[PodAddress], turn: int) -> list[PodAddress]:
    """The pods from the one whose turn it is, around."""
    first = turn % len(pods)
    return [*pods[first:], *pods[:first]]


def by_key(pods: Sequence[PodAddress], key: str) -> list[PodAddress]:
    """The pods in an order that the key alone decides, for every gateway alike.

    Rendezvous hashing: a pod that goes or comes changes the first place of no other key than those
    whose first it was or becomes. Source: Thaler and Ravishankar, 1998.
    """

    def rank(pod: PodAddress) -> bytes:
        return hashlib.sha256(f"{pod.uid}/{key}".encode()).digest()

    return sorted(pods, key=rank)
