"""References to bodies of commands, which lie outside of the log: they lead to no other file."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.trainer import tinker, tiny
from tests.trainer.test_bad_input import client as trainer
from tests.trainer.test_bad_input import post
from tests.trainer.tiny import Volume

from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.log_bodies import Bodies, read_logged
from espalier.trainer.volume.log_records import Key, Record

__all__ = ["trainer"]

# A file of another model, as seen from the folder of the bodies.
SECRET = "models/spell/bodies/inbox-000000001"
UP = "../../.."
REFERENCES = {
    "dots": f"{UP}/{SECRET}",
    "dots behind a name of ours": f"inbox-000000001/../{UP}/{SECRET}",
    "an absolute path": "@",
    "dots as percents": f"%2e%2e/%2e%2e/%2e%2e/{SECRET}",
    "an end within": f"{UP}/{SECRET}\0inbox-000000001",
    "a line's end": f"inbox-000000001\n/../{UP}/{SECRET}",
    "a folder": "..",
}


def bodies_of(volume: Volume) -> Path:
    return CheckpointStore(volume.path, tiny.MODEL).model_directory(tiny.MODEL) / "bodies"


def secret_of(volume: Volume) -> Path:
    path = volume.path / SECRET
    path.parent.mkdir(parents=True)
    return path


def rename(volume: Volume, reference: str) -> None:
    """Lets the log say that the body of its command lies there."""
    with closing(sqlite3.connect(bodies_of(volume).parent / "log.sqlite")) as log:
        log.execute("UPDATE commands SET body = ?", (reference,))
        log.commit()


def began(volume: Volume, policy: Policy) -> None:
    """A trainer that ends with gradients that wait for their step."""
    engine = tiny.engine(volume.path, volume.base, policy)
    engine.assign(tiny.assignment())
    tinker.accept(engine, *tinker.gradients(1))
    assert tinker.work(engine) == [1]
    engine.state.log.close()


def assert_lost_and_goes_on(engine: Engine, *untold: str) -> None:
    """What waited is told to be lost, without a word of what was found; a new step is taken."""
    problem = engine.state.report().problem
    assert problem is not None
    assert problem.reason == "GradientsLost"
    assert "was logged" in problem.detail
    assert not [text for text in untold if text in problem.text]
    engine.assign(tiny.assignment())
    for one in (tinker.step(2), tinker.gradients(3), tinker.step(4)):
        tinker.accept(engine, *one)
    assert tinker.work(engine) == [2, 3, 4]
    assert [tinker.status(engine, seq) for seq in (2, 3, 4)] == [409, 200, 200]
    engine.state.log.close()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_log_that_names_a_file_elsewhere_has_it_neither_read_nor_removed(
    volume: Volume, policy: Policy, name: str
) -> None:
    began(volume, policy)
    secret = secret_of(volume)
    # The very bytes that were logged: only where they lie is wrong.
    (bodies_of(volume) / "inbox-000000001").rename(secret)
    rename(volume, REFERENCES[name].replace("@", str(secret)))
    assert_lost_and_goes_on(tiny.engine(volume.path, volume.base, policy), "spell", str(secret))
    assert secret.exists()


PLACES: dict[str, Callable[[Path, Path], object]] = {
    "a link to the same bytes": lambda path, secret: path.symlink_to(secret),
    "a link to itself": lambda path, _: path.symlink_to(path),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a folder": lambda path, _: path.mkdir(),
    "other bytes": lambda path, secret: path.write_bytes(secret.read_bytes() + b" "),
    "nothing": lambda path, secret: None,
}


@pytest.mark.parametrize("name", PLACES)
def test_what_stands_in_place_of_a_body_is_not_trained_on(
    volume: Volume, policy: Policy, name: str
) -> None:
    began(volume, policy)
    secret, path = secret_of(volume), bodies_of(volume) / "inbox-000000001"
    path.rename(secret)
    PLACES[name](path, secret)
    assert_lost_and_goes_on(tiny.engine(volume.path, volume.base, policy), "spell", str(path))
    assert secret.exists()


def test_a_command_that_waits_is_not_applied_by_what_stands_in_place_of_its_body(
    engine: Engine, volume: Volume
) -> None:
    tinker.accept(engine, *tinker.gradients(1))
    path = bodies_of(volume) / "inbox-000000001"
    path.rename(secret_of(volume))
    path.symlink_to(volume.path / SECRET)
    assert tinker.work(engine) == [1]
    assert (tinker.status(engine, 1), tinker.reason(engine, 1)) == (409, "BodyAltered")
    for one in (tinker.step(2), tinker.gradients(3), tinker.step(4)):
        tinker.accept(engine, *one)
    assert tinker.work(engine) == [2, 3, 4]
    assert tinker.status(engine, 4) == 200


@pytest.fixture
def no_more_files() -> Iterator[None]:
    """This process may open no other file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_body_that_cannot_be_opened_now_is_no_altered_one(
    tmp_path: Path, no_more_files: None
) -> None:
    with pytest.raises(OSError, match="Too many open files"):
        read_logged(tmp_path / "inbox-000000001", "", "optim-step", Key("a", 1))


def test_log_probs_of_a_reference_are_read_through_no_link(tmp_path: Path) -> None:
    bodies = Bodies(tmp_path)
    record = Record(1, Key("a", 1), "forward-backward", "", None, "", "", "")
    assert bodies.referred(record) == b""
    bodies.write_referred(1, b"[]")
    assert bodies.referred(record) == b"[]"
    (written,) = tmp_path.iterdir()
    written.rename(tmp_path / "elsewhere")
    written.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CommandError, match="is not the one that was logged"):
        bodies.referred(record)


async def test_a_backward_refers_to_a_forward_by_its_id_and_never_by_a_path(
    trainer: Any, volume: Volume
) -> None:
    inputs = [t.model_dump(mode="json", exclude_none=True) for t in tiny.trajectories()]
    status, forward = await post(trainer, "forward", json.dumps({"inputs": inputs}))
    assert status == 200
    weights = [[0.1] * len(datum["logprobs"]) for datum in forward["data"]]
    secret_of(volume).write_bytes(json.dumps({"inputs": inputs}).encode())
    kept = forward["forward_id"]
    for reference in (*REFERENCES.values(), f"{kept}/../{kept}", f"{kept}.json", f"{kept}\0"):
        sent = {"forward_id": reference, "weights": weights}
        status, told = await post(trainer, "backward", json.dumps(sent))
        assert (status, told["reason"]) == (404, "ForwardNotFound")
    sent = {"forward_id": kept, "weights": weights}
    assert (await post(trainer, "backward", json.dumps(sent)))[0] == 200
