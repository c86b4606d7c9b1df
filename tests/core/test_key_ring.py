"""Keys change so that whoever signs is believed, however late pods and gateway learn of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from espalier.core.key_ring import OVERLAP_SECONDS, PUBLISHED_SECONDS, KeyRing, published, turned

DAY = 86_400.0
STEP = 30.0
# A kubelet brings a ConfigMap within this time; the gateway reads its key once a minute; a token
# lives for two minutes.
KUBELET, GATEWAY, TOKEN = 180.0, 60.0, 130.0


def maker() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"k{next(numbers)}"


def public(key: str) -> str:
    return f"pub-{key}"


def stories(requests: dict[float, str], seconds: float) -> list[tuple[float, KeyRing]]:
    """The ring after every turn, of one that began with a single key."""
    make, ring, told, asked = maker(), KeyRing("old"), [], ""
    for number in range(int(seconds / STEP)):
        now = 1e9 + number * STEP
        asked = requests.get(number * STEP, asked)
        ring = turned(ring, requested=asked, rotate_after=DAY, now=now, make=make, public=public)
        told.append((now, ring))
    return told


@pytest.mark.parametrize(
    "requests",
    [{}, {0.0: "a"}, {600.0: "a"}, {600.0: "a", 660.0: "b", 900.0: "c"}, {30.0: "a", 3000.0: "b"}],
    ids=["by age", "at once", "once", "in haste", "twice"],
)
def test_what_is_signed_is_always_believed(requests: dict[float, str]) -> None:
    story = stories(requests, 2 * DAY if not requests else 7200)
    assert len({ring.current for _, ring in story}) > 1
    steps = int(max(KUBELET, GATEWAY + TOKEN) / STEP)
    for number, (_, ring) in enumerate(story):
        signs = public(ring.current)
        # A pod that is behind by a kubelet's delay, but for those that were there at the start.
        for late in range(int(KUBELET / STEP) + 1):
            if number - late >= 0:
                assert signs in published(story[number - late][1], public)
        # A gateway that still signs with it, and the last token of it.
        for later in story[number : number + steps]:
            assert signs in published(later[1], public)


def test_a_request_is_met_once_and_the_key_before_is_forgotten_after_its_overlap() -> None:
    story = stories({600.0: "now"}, 3600)
    (moment,) = [
        now for (now, ring), (_, before) in zip(story[1:], story, strict=False)
        if ring.current != before.current
    ]  # fmt: skip
    assert moment - 1e9 == 600.0
    for now, ring in story:
        believed = "pub-old" in published(ring, public)
        assert believed is (now < moment + OVERLAP_SECONDS)


def test_a_key_never_signs_before_pods_can_know_it() -> None:
    story = stories({0.0: "at once"}, 1200)
    first = next(now for now, ring in story if ring.current != "old")
    assert first - 1e9 >= PUBLISHED_SECONDS
