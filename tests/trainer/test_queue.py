"""Commands of Tinker's clients: strictly by number, each once, whatever order they arrive in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tinker.messages import MODEL_ID
from tests.trainer import tinker, tiny
from tests.trainer.tiny import Volume

from espalier.api.wire.declared import Declared
from espalier.api.wire.gradients import BackwardRequest, ForwardRequest, ForwardResult
from espalier.api.wire.problem import Problem
from espalier.tinker.bodies import Standing
from espalier.trainer.engine import queue
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError
from espalier.trainer.volume import inbox, results
from espalier.trainer.volume.command_log import Key, Kind
from espalier.trainer.volume.inbox import Arrival
from espalier.trainer.volume.log_records import TINKER_GRADIENTS

Sent = tuple[int, Kind, bytes]
STEP: list[Sent] = [
    tinker.gradients(1, seed=1),
    tinker.gradients(2, seed=2),
    tinker.gradients(3, seed=3),
    tinker.step(4),
]


def weights(engine: Engine) -> list[torch.Tensor]:
    compute = engine.state.compute
    return [p.detach().clone() for p in compute.policy.parameters.values()]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def in_order(
    tiny_base: Volume, shared_policy: Policy, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The digest of a step whose commands came one after another."""
    return digest_of(tiny_base, shared_policy, tmp_path_factory, STEP)


def digest_of(
    base: Volume, policy: Policy, paths: pytest.TempPathFactory, arrivals: list[Sent]
) -> str:
    path = paths.mktemp("volume")
    (path / "bases").symlink_to(base.path / "bases")
    policy.reset()
    policy.drop_gradients()
    engine = tiny.engine(path, base.base, policy)
    engine.assign(tiny.assignment())
    try:
        for one in arrivals:
            tinker.accept(engine, *one)
            tinker.work(engine)
        return engine.state.position.digest
    finally:
        engine.state.log.close()


@settings(max_examples=8)
@given(order=st.permutations(STEP), twice=st.sampled_from(STEP))
def test_chunks_in_any_order_are_one_gradient(  # noqa: PLR0917
    order: list[Sent],
    twice: Sent,
    tiny_base: Volume,
    shared_policy: Policy,
    tmp_path_factory: pytest.TempPathFactory,
    in_order: str,
) -> None:
    found = digest_of(tiny_base, shared_policy, tmp_path_factory, [*order, twice])
    assert found == in_order


def test_commands_wait_for_the_numbers_before_theirs(engine: Engine) -> None:
    tinker.accept(engine, *STEP[1])
    tinker.accept(engine, *STEP[2])
    assert tinker.work(engine) == []
    assert engine.state.log.inbox.gaps() == [Key(MODEL_ID, 1)]
    tinker.accept(engine, *STEP[0])
    assert tinker.work(engine) == [1, 2, 3]
    assert engine.state.report().pending == 3


def test_a_resend_changes_nothing_and_another_command_under_its_number_is_refused(
    engine: Engine,
) -> None:
    for _ in range(2):
        tinker.accept(engine, *STEP[0])
    assert tinker.work(engine) == [1]
    tinker.accept(engine, *STEP[0])
    assert tinker.work(engine) == []
    for other in (tinker.gradients(1, seed=9), tinker.step(1)):
        with pytest.raises(CommandError) as refused:
            tinker.accept(engine, *other)
        assert (refused.value.status, refused.value.problem.reason) == (422, "KeyReused")
    assert engine.state.report().pending == 1


def test_a_client_that_comes_later_drops_the_batch_that_another_left(
    engine: Engine, in_order: str
) -> None:
    other = f"{MODEL_ID}-2"
    tinker.accept(engine, *tinker.gradients(1, seed=9), model_id=other)
    # It waits for a number that comes when the client has lost its turn.
    tinker.accept(engine, *tinker.gradients(3, seed=8), model_id=other)
    for one in STEP:
        tinker.accept(engine, *one)
    assert tinker.work(engine) == [1, 1, 2, 3, 4]
    assert engine.state.position.digest == in_order
    tinker.accept(engine, *tinker.gradients(5))
    tinker.accept(engine, 2, "save-weights", tinker.save(2), model_id=other)
    assert tinker.work(engine) == [5, 2, 3]
    late = engine.state.log.find(Key(other, 3))
    assert late is not None
    assert (late.status, "AnotherClientTrains" in late.answer) == (409, True)
    assert [record.key.seq for record in engine.state.log.pending()] == [5]


def test_a_part_that_another_client_dropped_makes_the_rest_of_its_batch_fail(
    engine: Engine,
) -> None:
    other = f"{MODEL_ID}-2"
    tinker.accept(engine, *STEP[0])
    tinker.work(engine)
    tinker.accept(engine, *tinker.gradients(1, seed=9, model_id=other), model_id=other)
    tinker.accept(engine, 2, "optim-step", tinker.optim_step(2, model_id=other), model_id=other)
    tinker.work(engine)
    stepped = engine.state.position.digest
    for one in STEP[1:]:
        tinker.accept(engine, *one)
    assert tinker.work(engine) == [2, 3, 4]
    assert (tinker.status(engine, 4), tinker.reason(engine, 4)) == (409, "BatchBroken")
    assert engine.state.position.digest == stepped
    assert engine.state.report().pending == 0
    tinker.accept(engine, *tinker.gradients(5))
    tinker.accept(engine, *tinker.step(6))
    assert tinker.work(engine) == [5, 6]
    assert tinker.status(engine, 6) == 200


def test_a_batch_of_which_a_restart_has_lost_gradients_ends_with_its_step(engine: Engine) -> None:
    tinker.accept(engine, *STEP[0])
    tinker.work(engine)
    engine.state.drop_gradients()
    lost = Problem(reason="GradientsLost", detail="what was added is gone", remedy="begin again")
    engine.state.lose(lost, weights=False)
    for one in (*STEP[1:], tinker.gradients(5), tinker.step(6)):
        tinker.accept(engine, *one)
    assert tinker.work(engine) == [2, 3, 4, 5, 6]
    assert [tinker.reason(engine, seq) for seq in (2, 3)] == ["GradientsLost"] * 2
    assert tinker.reason(engine, 4) == "BatchBroken"
    assert [tinker.status(engine, seq) for seq in (5, 6)] == [200, 200]


def test_a_backward_that_drops_what_another_client_left_still_has_its_forward(
    engine: Engine,
) -> None:
    tinker.accept(engine, *STEP[0])
    tinker.work(engine)
    asked = ForwardRequest(inputs=tiny.trajectories(), group_size=3)
    seen = ForwardResult.model_validate_json(tiny.send(engine, "forward", asked, ("ours", 1)).body)
    weights = [[1.0] * len(datum.logprobs) for datum in seen.data]
    custom = BackwardRequest(forward_id=seen.forward_id, weights=weights)
    assert tiny.send(engine, "backward", custom, ("ours", 2)).status == 200
    assert [record.key.session for record in engine.state.log.pending()] == ["ours"]
    # A later one is of other weights.
    tiny.send(engine, "optim-step", tiny.optim_step(), ("ours", 3))
    with pytest.raises(CommandError, match="ForwardNotFound"):
        tiny.send(engine, "backward", custom, ("ours", 4))


def test_a_failed_part_of_a_batch_makes_its_step_fail_and_drops_the_other_parts(
    engine: Engine,
) -> None:
    before = weights(engine)
    too_far = tinker.datum(
        tinker.Explicit([1, 2], [2, 3], {"logprobs": [0, -1e30], "advantages": [0, 1]})
    )
    tinker.accept(engine, *STEP[0])
    tinker.accept(engine, 2, TINKER_GRADIENTS, tinker.forward_backward(2, [too_far]))
    tinker.accept(engine, *STEP[2])
    tinker.accept(engine, *STEP[3])
    tinker.accept(engine, *tinker.step(5))
    tinker.accept(engine, *tinker.gradients(6))
    tinker.accept(engine, *tinker.step(7))
    assert tinker.work(engine) == [1, 2, 3, 4, 5, 6, 7]
    assert [tinker.status(engine, seq) for seq in range(1, 8)] == [
        200,
        409,
        200,
        409,
        409,
        200,
        200,
    ]
    assert [tinker.reason(engine, seq) for seq in (2, 4, 5)] == [
        "NonFiniteLoss", "BatchBroken", "NoGradients",
    ]  # fmt: skip
    assert engine.state.position.step == 1
    assert not all(map(torch.equal, before, weights(engine)))


def test_a_step_that_is_refused_is_the_end_of_its_batch(engine: Engine) -> None:
    """Its client sends the pair again, and would train on both at once."""
    wrong = Problem(reason="InvalidRequest", detail="adam_params.beta1: is 1.5", remedy="")
    body = tinker.optim_step(2, beta1=1.5)
    refused = Arrival(Key(MODEL_ID, 2), "optim-step", body, problem=wrong.model_dump_json())
    engine.state.log.inbox.accept(refused)
    for one in (tinker.gradients(1, seed=9), *pair(3), *pair(5)):
        tinker.accept(engine, *one)
    assert tinker.work(engine) == [1, 2, 3, 4, 5, 6]
    assert [tinker.status(engine, seq) for seq in (2, 4, 6)] == [422, 200, 200]
    trained = [commit.metrics["tokens/trained"] for commit in engine.state.commits]
    assert trained[0] == trained[1]


def pair(seq: int) -> tuple[Sent, Sent]:
    """The same batch whatever its numbers, and its step."""
    return tinker.gradients(seq, seed=1), tinker.step(seq + 1)


def test_what_waits_behind_a_number_that_never_comes_fails_and_names_it(engine: Engine) -> None:
    tinker.accept(engine, *STEP[0])
    tinker.accept(engine, *STEP[2])
    tinker.accept(engine, *STEP[3])
    assert tinker.work(engine) == [1]
    (missing,) = engine.state.log.inbox.gaps()
    answered = queue.give_up(engine, missing, 300)
    assert [key.seq for key in answered] == [2, 3, 4]
    assert [tinker.reason(engine, seq) for seq in (2, 3, 4)] == [
        "NumberMissing", "NumberMissing", "NumberMissing",
    ]  # fmt: skip
    assert engine.state.report().pending == 0
    with pytest.raises(CommandError) as late:
        tinker.accept(engine, *STEP[1])
    assert (late.value.status, late.value.problem.reason) == (422, "CameTooLate")


def test_a_step_without_any_gradient_is_taken_as_torch_takes_it(engine: Engine) -> None:
    for one in (STEP[0], tinker.step(2)):
        tinker.accept(engine, *one)
    still = tinker.datum(
        tinker.Explicit([1, 2], [2, 3], {"logprobs": [0, -2], "advantages": [0, 0]})
    )
    tinker.accept(engine, 3, TINKER_GRADIENTS, tinker.forward_backward(3, [still]))
    tinker.accept(engine, *tinker.step(4))
    tinker.work(engine)
    assert tinker.status(engine, 4) == 200
    assert tiny.moments(engine).steps == 2


def test_two_models_of_one_trainer_wait_for_their_own_numbers_alone(engine: Engine) -> None:
    tinker.accept(engine, *STEP[1])
    other = "0a1b:train:1"
    body = tinker.forward_backward(1, tinker.batch(), model_id=other)
    tinker.accept(engine, 1, TINKER_GRADIENTS, body, model_id=other)
    turn = queue.take_turn(engine)
    assert turn.answered == Key(other, 1)


def test_a_command_of_an_earlier_term_fails_when_its_turn_comes(engine: Engine) -> None:
    tinker.accept(engine, *STEP[0], term=1)
    engine.assign(tiny.assignment(term=2))
    tinker.work(engine)
    assert tinker.reason(engine, 1) == "StaleTerm"


def test_a_run_in_git_binds_tinkers_client_too(engine: Engine) -> None:
    given = Declared(run="run", loss_fn="ppo", learning_rate=1e-2).model_dump_json()
    tinker.accept(engine, *STEP[0], declared=given)
    tinker.accept(engine, *tinker.gradients(2, loss="ppo"), declared=given)
    tinker.work(engine)
    assert tinker.reason(engine, 1) == "RunSaysOtherwise"
    assert tinker.status(engine, 2) == 200


def test_commands_wait_until_the_operator_assigns_a_run(volume: Volume, policy: Policy) -> None:
    engine = tiny.engine(volume.path, volume.base, policy)
    tinker.accept(engine, *STEP[0])
    held_up = queue.take_turn(engine).held_up
    assert held_up is not None
    assert held_up.reason == "AwaitingAssignment"
    engine.assign(tiny.assignment())
    assert tinker.work(engine) == [1]
    engine.state.log.close()


def test_what_a_restored_volume_holds_waits_for_the_assignment_that_counts_now(
    engine: Engine, volume: Volume, policy: Policy
) -> None:
    for one in STEP:
        tinker.accept(engine, *one, term=1)
    engine.state.log.close()
    again = tiny.engine(volume.path, volume.base, policy)
    held_up = queue.take_turn(again).held_up
    assert held_up is not None
    assert held_up.reason == "AwaitingAssignment"
    again.assign(tiny.assignment(term=2))
    tinker.work(again)
    assert tinker.reason(again, 1) == "StaleTerm"
    assert again.state.commits == []
    again.state.log.close()


def test_a_save_names_where_training_stands_and_says_what_was_asked(engine: Engine) -> None:
    tinker.accept(engine, 1, "save-weights", tinker.save(1))
    for one in (tinker.gradients(2), tinker.step(3)):
        tinker.accept(engine, *one)
    tinker.accept(engine, 4, "save-weights", tinker.save(4, kind="save_weights_for_sampler"))
    tinker.work(engine)
    first, second = (engine.state.log.find(Key(MODEL_ID, seq)) for seq in (1, 4))
    assert first is not None
    assert second is not None
    base = Standing.model_validate_json(first.answer)
    assert (base.checkpoint, base.digest, base.step) == ("", "", 0)
    stepped = Standing.model_validate_json(second.answer)
    position = engine.state.position
    assert (stepped.checkpoint, stepped.digest) == (position.name, position.digest)
    assert stepped.request is not None
    assert (stepped.request.type, stepped.request.path) == ("save_weights_for_sampler", "first")


@pytest.mark.parametrize("optimizer", [True, False])
def test_loaded_weights_are_in_force_again_after_a_restart(
    engine: Engine, volume: Volume, policy: Policy, optimizer: bool
) -> None:
    for one in (STEP[0], tinker.step(2)):
        tinker.accept(engine, *one)
    tinker.work(engine)
    digest, trained = engine.state.position.digest, weights(engine)
    engine.assign(tiny.assignment(term=2))
    tinker.accept(engine, 3, "load-weights", tinker.load(3, digest, optimizer=optimizer))
    assert tinker.work(engine) == [3]
    engine.state.log.close()
    again = tiny.engine(volume.path, volume.base, policy)
    assert all(map(torch.equal, trained, weights(again)))
    assert tiny.moments(again).steps == int(optimizer)
    assert again.state.position.digest == ""
    again.assign(tiny.assignment(term=2))
    for one in (tinker.gradients(4), tinker.step(5)):
        tinker.accept(again, *one)
    tinker.work(again)
    assert again.state.commits[-1].parent == ""
    assert again.state.read(again.state.position.digest).state.loaded == digest
    tinker.accept(again, 6, "load-weights", tinker.load(6, digest, optimizer=optimizer))
    tinker.work(again)
    assert tinker.reason(again, 6) == "LoadTooLate"
    again.state.log.close()


def test_loaded_weights_that_are_gone_do_not_keep_the_trainer_from_starting(
    engine: Engine, volume: Volume, policy: Policy
) -> None:
    for one in (STEP[0], tinker.step(2)):
        tinker.accept(engine, *one)
    tinker.work(engine)
    stored = engine.state.store.open("checkpoint", engine.state.position.digest)
    engine.assign(tiny.assignment(term=2))
    tinker.accept(engine, 3, "load-weights", tinker.load(3, stored.digest, optimizer=True))
    tinker.work(engine)
    engine.state.log.close()
    place = stored.path.rename(volume.path / "elsewhere")
    again = tiny.engine(volume.path, volume.base, policy)
    told = again.state.report().problem
    assert told is not None
    assert told.reason == "WeightsLost"
    assert stored.digest in told.detail
    again.assign(tiny.assignment(term=2))
    # Nothing is trained from the weights that are in their place.
    for one in (tinker.gradients(4), tinker.step(5)):
        tinker.accept(again, *one)
    tinker.work(again)
    assert [tinker.reason(again, seq) for seq in (4, 5)] == ["WeightsLost", "BatchBroken"]
    place.rename(stored.path)
    for one in (
        (6, "load-weights", tinker.load(6, stored.digest, optimizer=True)),
        tinker.gradients(7),
        tinker.step(8),
    ):
        tinker.accept(again, *one)
    tinker.work(again)
    assert again.state.report().problem is None
    assert again.state.read(again.state.position.digest).state.loaded == stored.digest
    again.state.log.close()


def test_a_command_that_trainers_die_of_is_not_tried_for_ever(engine: Engine) -> None:
    tinker.accept(engine, *STEP[0])
    (queued,) = engine.state.log.inbox.waiting(MODEL_ID)
    engine.state.log.begin_queued(queued)
    for _ in range(queue.MOST_CRASHES):
        engine.state.log.inbox.count_crashes()
    tinker.work(engine)
    assert tinker.reason(engine, 1) == "TrainerDied"


def test_too_many_waiting_commands_are_refused_until_results_have_come(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_COMMANDS", 2)
    tinker.accept(engine, *STEP[0])
    tinker.accept(engine, *STEP[1])
    with pytest.raises(CommandError) as refused:
        tinker.accept(engine, *STEP[2])
    assert (refused.value.status, refused.value.problem.reason) == (429, "InboxFull")
    tinker.work(engine)
    tinker.accept(engine, *STEP[2])


def test_bodies_go_when_nothing_needs_them(engine: Engine) -> None:
    bodies = engine.state.store.model_directory(tiny.MODEL) / "bodies"
    tinker.accept(
        engine, 1, TINKER_GRADIENTS, tinker.forward_backward(1, tinker.batch(), forward_only=True)
    )
    tinker.accept(engine, *tinker.gradients(2))
    tinker.work(engine)
    assert len(list(bodies.iterdir())) == 1
    tinker.accept(engine, *tinker.step(3))
    tinker.work(engine)
    assert list(bodies.iterdir()) == []


def test_the_oldest_results_go_when_there_are_too_many(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MOST", 2)
    for seq in (1, 2, 3):
        tinker.accept(engine, *tinker.gradients(seq))
    tinker.work(engine)
    records = [engine.state.log.find(Key(MODEL_ID, seq)) for seq in (1, 2, 3)]
    kept = [engine.state.log.result(record) is not None for record in records if record]
    assert kept == [False, True, True]
