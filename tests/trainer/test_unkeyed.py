"""Commands without a key: when the trainer takes one for the one before it."""

from __future__ import annotations

import pytest
from tests.trainer import tiny

from espalier.api.wire.base import Wire
from espalier.api.wire.gradients import ForwardRequest
from espalier.trainer.engine import unkeyed
from espalier.trainer.engine.commands import Empty, Sent
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.unkeyed import Unkeyed
from espalier.trainer.volume.command_log import Key, Kind

BATCH, OTHER = tiny.forward_backward(), tiny.forward_backward(seed=1)
STEP = tiny.optim_step()


def send(
    engine: Engine,
    kind: Kind,
    request: Wire,
    *,
    delivered: bool = False,
    client: str = "ann",
    waited: bool = True,
) -> Key | None:
    done = unkeyed.execute(engine, Unkeyed(client, Sent(kind, request, None)), waited=waited)
    if done is None:
        return None
    key, answer = done
    assert answer.status == 200
    if delivered:
        engine.state.log.mark_delivered(key)
    return key


def test_an_undelivered_command_that_comes_again_gets_its_answer(engine: Engine) -> None:
    first = send(engine, "forward-backward", BATCH)
    assert send(engine, "forward-backward", BATCH) == first
    assert len(engine.state.tallies) == 1


def test_a_delivered_command_that_comes_again_is_a_new_one(engine: Engine) -> None:
    first = send(engine, "forward-backward", BATCH, delivered=True)
    assert send(engine, "forward-backward", BATCH) != first
    assert len(engine.state.tallies) == 2


def test_a_possible_resend_waits_for_the_report_of_a_delivery(engine: Engine) -> None:
    first = send(engine, "forward-backward", BATCH)
    assert first is not None
    assert send(engine, "forward-backward", BATCH, waited=False) is None
    assert send(engine, "forward-backward", OTHER, waited=False) is not None
    engine.state.log.mark_delivered(first)
    assert len(engine.state.tallies) == 2


def test_another_command_shows_that_the_client_finished_the_one_before(engine: Engine) -> None:
    send(engine, "forward-backward", BATCH)
    send(engine, "forward-backward", OTHER)
    send(engine, "forward-backward", BATCH)
    assert len(engine.state.tallies) == 3


def test_an_equal_command_of_another_client_is_not_a_resend(engine: Engine) -> None:
    send(engine, "forward-backward", BATCH)
    send(engine, "forward-backward", BATCH, client="bob")
    assert len(engine.state.tallies) == 2


def test_a_step_whose_answer_was_lost_is_not_applied_again_with_its_batches(
    engine: Engine,
) -> None:
    for _ in range(2):
        send(engine, "forward-backward", BATCH, delivered=True)
        send(engine, "forward-backward", OTHER, delivered=True)
        send(engine, "optim-step", STEP)
    assert (len(engine.state.commits), len(engine.state.tallies)) == (1, 0)
    (commit,) = engine.state.commits
    assert commit.metrics["trajectories/trained"] == 12


def test_after_a_delivered_step_the_same_batch_is_a_second_pass_over_the_data(
    engine: Engine,
) -> None:
    for _ in range(2):
        send(engine, "forward-backward", BATCH, delivered=True)
        send(engine, "optim-step", STEP, delivered=True)
    assert len(engine.state.commits) == 2


@pytest.mark.parametrize("kind", ["forward-backward", "forward"])
def test_a_command_that_a_rollback_dropped_is_applied_again(engine: Engine, kind: Kind) -> None:
    request = (
        BATCH
        if kind == "forward-backward"
        else ForwardRequest(inputs=tiny.trajectories(), group_size=3)
    )
    first = send(engine, kind, request)
    engine.assign(tiny.assignment(term=2, branch="b2"))
    assert send(engine, kind, request) != first


def test_a_zero_grad_is_as_good_once_as_twice(engine: Engine) -> None:
    first = send(engine, "zero-grad", Empty())
    assert send(engine, "zero-grad", Empty()) == first


def test_deliveries_outlive_the_process(engine: Engine, volume: tiny.Volume) -> None:
    send(engine, "forward-backward", BATCH, delivered=True)
    engine.state.log.close()
    again = tiny.engine(volume.path, volume.base)
    send(again, "forward-backward", BATCH)
    assert len(again.state.tallies) == 2
    again.state.log.close()
