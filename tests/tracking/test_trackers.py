"""Trackers that fail, hang or are unknown; and what of a configuration they are not told."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from espalier.client.errors import ConfigurationError
from espalier.tracking import Console, JsonLines, track
from espalier.tracking.delivery import Delivery
from espalier.tracking.redaction import REDACTED, redacted, secrets_of
from espalier.tracking.trackers import Trackers, TrackerWarning


class Remembers:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, config: Mapping[str, Any]) -> None:
        self.told.append(dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.told.append((step, dict(metrics)))

    def finish(self) -> None:
        self.told.append("finish")


class Hangs(Remembers):
    """Does not come back from its first step before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.called = threading.Event()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.called.set()
        self.let_go.wait(60)
        super().log(step, metrics)


class StartsLate(Remembers):
    """Its service is down for the first start."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = 0

    def start(self, config: Mapping[str, Any]) -> None:
        self.starts += 1
        if self.starts == 1:
            raise ConnectionError("no route to the tracker")
        super().start(config)


def test_a_tracker_is_told_everything_in_order() -> None:
    tracker = Remembers()
    trackers = Trackers([tracker])
    trackers.start({"steps": 2})
    trackers.log(1, {"a": 1.0})
    trackers.log(2, {"a": 2.0})
    trackers.finish()
    assert tracker.told == [{"steps": 2}, (1, {"a": 1.0}), (2, {"a": 2.0}), "finish"]


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_the_others() -> None:
    hanging, other = Hangs(), Remembers()
    trackers = Trackers([hanging, other], finish_seconds=1.0)
    trackers.start({})
    for step in range(1000):
        trackers.log(step, {"a": 1.0})
    assert hanging.called.wait(60)
    with pytest.warns(TrackerWarning, match=r"Hangs is slow: it has not ended in time"):
        trackers.finish()
    hanging.let_go.set()
    assert other.told[-1] == "finish"
    # The run's own record says how much a tracker lacks.
    assert trackers.metrics()["tracking/dropped"] > 700


def test_the_oldest_steps_fall_out_of_a_full_queue() -> None:
    tracker = Hangs()
    delivery = Delivery(tracker, room=2)
    delivery.start({})
    delivery.log(0, {})
    assert tracker.called.wait(60)
    for step in (1, 2, 3, 4):
        delivery.log(step, {})
    assert delivery.told == (0, 2)
    assert delivery.messages() == [
        "Hangs is slow: 2 steps wait for it: the oldest was dropped",
    ]
    tracker.let_go.set()
    delivery.end()
    delivery.ended(time.monotonic() + 60)
    assert [told[0] for told in tracker.told[1:-1]] == [0, 3, 4]


def test_a_tracker_whose_service_comes_up_later_is_started_then() -> None:
    tracker = StartsLate()
    delivery = Delivery(tracker, retry_seconds=0.0)
    delivery.start({"steps": 1})
    delivery.log(1, {})
    delivery.end()
    delivery.ended(time.monotonic() + 60)
    assert tracker.told == [{"steps": 1}, (1, {}), "finish"]
    assert delivery.messages() == [
        "StartsLate.start failed: ConnectionError: no route to the tracker"
    ]
    assert delivery.told == (1, 0)


def test_a_thread_that_comes_back_late_does_not_end_what_was_started_anew() -> None:
    tracker = Hangs()
    delivery = Delivery(tracker)
    delivery.start({})
    delivery.log(1, {})
    assert tracker.called.wait(60)
    late = delivery._thread
    assert late is not None
    delivery.end()
    delivery.ended(time.monotonic())
    delivery.start({"again": True})
    tracker.let_go.set()
    late.join(60)
    assert "finish" not in tracker.told
    delivery.log(2, {})
    delivery.end()
    delivery.ended(time.monotonic() + 60)
    assert tracker.told[-2:] == [(2, {}), "finish"]


def test_finish_twice_and_before_the_start_is_fine() -> None:
    tracker = Remembers()
    trackers = Trackers([tracker])
    trackers.finish()
    trackers.start({})
    trackers.finish()
    trackers.finish()
    assert tracker.told == [{}, "finish"]


def test_a_tracker_that_is_not_installed_is_refused_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'espalier\[wandb\]'"):
        track(["wandb"], tmp_path, run_id="a")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'espalier\[tensorboard\]'"):
        track(["tensorboard"], tmp_path, run_id="a")


def test_trackers_load_their_packages_when_they_are_named(tmp_path: Path) -> None:
    found = track(["console", "file"], tmp_path)
    assert [type(one) for one in found] == [Console, JsonLines]
    with pytest.raises(
        ConfigurationError, match="wandbb; there are: console, file, wandb, mlflow, tensorboard"
    ):
        track(["wandbb"], tmp_path)


@pytest.mark.parametrize("run_id", ["", "a/b", "a b", "x" * 65, "../up"])
def test_a_run_id_that_cannot_name_a_run_is_refused(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="run_id is"):
        track(["tensorboard"], tmp_path, run_id=run_id)


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"api_key": "abc"}, {"api_key": REDACTED}),
        ({"HF_TOKEN": "abc"}, {"HF_TOKEN": REDACTED}),
        ({"password": ["a", "b"]}, {"password": [REDACTED, REDACTED]}),
        ({"credentials": {"user": "me"}}, {"credentials": {"user": REDACTED}}),
        # As a pod's template has its variables.
        (
            {"env": [{"name": "HUB_TOKEN", "value": "abc"}, {"name": "DEBUG", "value": "1"}]},
            {"env": [{"name": REDACTED, "value": REDACTED}, {"name": "DEBUG", "value": "1"}]},
        ),
        # Numbers are no secrets, and most settings with tokens in their names are numbers.
        ({"max_tokens": 64, "stopTokenIds": [1, 2]}, {"max_tokens": 64, "stopTokenIds": [1, 2]}),
        ({"loss": {"name": "ppo", "clip": 0.2}}, {"loss": {"name": "ppo", "clip": 0.2}}),
        ({"url": "https://me:pw@host/x"}, {"url": f"https://{REDACTED}@host/x"}),
        ({"note": "use Bearer abc.def"}, {"note": f"use {REDACTED}"}),
        ({"note": "hf_abcdefghijklmnop here"}, {"note": f"{REDACTED} here"}),
        ({"note": "known-value-1 here"}, {"note": f"{REDACTED} here"}),
        ({"known-value-1": 1}, {REDACTED: 1}),
        (
            {"path": Path("/a/b"), "none": None, "on": True},
            {"path": "/a/b", "none": None, "on": True},
        ),
    ],
)
def test_no_secret_is_told(config: dict[str, Any], shown: dict[str, Any]) -> None:
    assert redacted(config, ["known-value-1"]) == shown


def test_secrets_of_the_environment_go_by_the_names_of_their_variables() -> None:
    variables = {"WANDB_API_KEY": "a" * 40, "HOME": "/home/me", "SHORT_TOKEN": "abc", "X": "y" * 9}
    assert secrets_of(variables) == ("a" * 40,)
