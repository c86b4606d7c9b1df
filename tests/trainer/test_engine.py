"""The engine: every command once, in order, and nothing half-done."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer import tiny
from tests.trainer.tiny import Volume

from espalier.api.wire.commits import Tokens
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardRequest,
    ForwardResult,
)
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepResult, TasksetUsed
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.forwards import FORWARDS_KEPT
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError, volume_problem


def policy_of(engine: Engine) -> Policy:
    assert isinstance(engine.state.compute, LocalCompute)
    return engine.state.compute.policy


def adapter(engine: Engine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy_of(engine).parameters.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def train(engine: Engine, steps: int, session: str = "s", first: int = 0) -> None:
    for step in range(first, first + steps):
        tiny.send(engine, "forward-backward", tiny.forward_backward(step), (session, 2 * step))
        tiny.send(engine, "optim-step", tiny.optim_step(), (session, 2 * step + 1))


def reason(call: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(CommandError) as caught:
        call()
    return caught.value.status, caught.value.problem.reason


def test_a_step_commits_a_checkpoint_of_the_new_weights(engine: Engine) -> None:
    before = adapter(engine)
    train(engine, 1)
    (commit,) = engine.state.commits
    stored = engine.state.store.verify("checkpoint", commit.digest)
    assert (commit.name, commit.step, commit.run_step, commit.parent) == ("arith-000001", 1, 1, "")
    assert same(load_file(stored.path / "adapter_model.safetensors"), adapter(engine))
    assert not same(before, adapter(engine))
    assert {"manifest.json", *stored.manifest["files"]} == {p.name for p in stored.path.iterdir()}
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in stored.path.iterdir())
    assert stored.path.stat().st_mode & 0o777 == 0o755


def test_a_checkpoint_loads_in_peft_and_vllm(engine: Engine) -> None:
    train(engine, 1)
    stored = engine.state.store.open("checkpoint", engine.state.commits[0].digest)
    config = json.loads((stored.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


def test_metrics_come_from_the_trainer_and_rewards_from_the_client(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    given = {"rollout/reward/mean": 0.25, "loss/sum": 99.0, "group/dropped": 3.0}
    tiny.send(engine, "optim-step", tiny.optim_step(metrics=given), ("s", 1))
    metrics = engine.state.commits[0].metrics
    assert (metrics["rollout/reward/mean"], metrics["group/dropped"]) == (0.25, 3.0)
    assert metrics["loss/sum"] != 99.0
    assert {
        "rollout/reward/std",
        "optimizer/gradient_norm",
        "optimizer/learning_rate",
        "tokens/trained",
        "logprob/difference_max",
        "logprob/difference_mean",
        "policy/mismatch_kl",
    } <= metrics.keys()


@pytest.mark.parametrize(
    ("rewards", "by_token", "expected"),
    [
        ([1.0, 0.0, 0.5, 0.25, 0.25, 0.25], None, [0.5, -0.5, 0.0, 0.0, 0.0, 0.0]),
        ([0.0] * 6, 0.75, [0.75]),
    ],
    ids=["estimated, one group constant", "given for each token"],
)
def test_the_advantages_of_a_step_are_figures_of_it(
    engine: Engine, rewards: list[float], by_token: float | None, expected: list[float]
) -> None:
    inputs = []
    for one, reward in zip(tiny.trajectories(), rewards, strict=True):
        (sample,) = one.samples
        own = None if by_token is None else [by_token] * len(sample.output_token_ids)
        sample = sample.model_copy(update={"advantages": own})
        inputs.append(one.model_copy(update={"samples": [sample], "reward": reward}))
    tiny.send(engine, "forward-backward", tiny.forward_backward(inputs=inputs), ("s", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    metrics = engine.state.commits[0].metrics
    assert {n: v for n, v in metrics.items() if n.startswith("advantage/")} == pytest.approx(
        {
            "advantage/mean": fmean(expected),
            "advantage/std": pstdev(expected),
            "advantage/min": min(expected),
            "advantage/max": max(expected),
            "advantage/zero_fraction": fmean(value == 0 for value in expected),
        }
    )


def test_a_commit_carries_the_taskset_that_its_client_names(engine: Engine) -> None:
    used = TasksetUsed(digest=f"sha256:{'0' * 64}", size=8, seed=1)
    for seq, given in ((0, used), (2, None)):
        tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", seq))
        tiny.send(engine, "optim-step", tiny.optim_step(taskset=given), ("s", seq + 1))
    assert [commit.taskset for commit in engine.state.commits] == [used, None]


def test_a_commit_counts_the_tokens_of_its_run_over_resends_and_rollbacks(engine: Engine) -> None:
    def step(seq: int, **metrics: float) -> Tokens:
        tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", seq))
        request = tiny.optim_step(metrics=metrics)
        # The second is a resend, whose first answer was lost.
        for _ in range(2):
            tiny.send(engine, "optim-step", request, ("s", seq + 1))
        return engine.state.commits[-1].run_tokens

    first = step(0, **{"completion/tokens_total": 1000.0})
    assert first.sampled == 1000
    assert first.trained == engine.state.commits[0].metrics["tokens/trained"]
    held = engine.state.assignment().assignment
    engine.assign(held.model_copy(update={"term": held.term + 1, "branch": f"b{held.term + 1}"}))
    second = step(2)
    assert (second.sampled, second.trained) == (1000 + first.trained, 2 * first.trained)
    other = held.model_copy(update={"term": held.term + 2, "branch": "b9", "run": "other/uid"})
    engine.assign(other)
    assert step(4).trained == first.trained


def sampled_by(*checkpoints: str) -> list[TrajectoryPayload]:
    """Trajectories of which the nth has reward n and two turns of the nth checkpoint."""
    found = []
    for reward, (name, one) in enumerate(zip(checkpoints, tiny.trajectories(), strict=False)):
        turn = one.samples[0].model_copy(update={"checkpoint": name or None})
        found.append(one.model_copy(update={"samples": [turn, turn], "reward": float(reward)}))
    return found


def test_a_step_brings_the_rewards_of_the_checkpoints_that_sampled_them(
    engine: Engine, volume: Volume, policy: Policy
) -> None:
    train(engine, 1)
    names = ["arith-000001", "arith-000001", "base", "", "origin-000003", "arith-b2-000004"]
    request = tiny.forward_backward(inputs=sampled_by(*names))
    tiny.send(engine, "forward-backward", request, ("m", 0))
    # Also after a crash between the two commands.
    engine.state.log.close()
    again = tiny.engine(volume.path, volume.base, policy)
    given = {"arith-000001": {"eval/reward/mean": 0.75}, "arith-b2-000004": {"reward/mean": 0.5}}
    tiny.send(again, "optim-step", tiny.optim_step(measured=given), ("m", 1))
    found = again.state.commits[-1].measured
    own = {"reward/mean": 0.5, "reward/std": 0.5, "reward/min": 0.0, "reward/max": 1.0}
    # What the client says goes before: it knows as well what it did not send.
    assert found == {
        "arith-000001": own | {"eval/reward/mean": 0.75},
        "arith-b2-000004": {"reward/mean": 0.5},
    }
    again.state.log.close()


def test_a_trajectory_of_several_checkpoints_counts_for_none(engine: Engine) -> None:
    train(engine, 1)
    (one, *rest) = sampled_by("arith-000001", "", "", "", "", "")
    mixed = [one.samples[0], one.samples[1].model_copy(update={"checkpoint": "arith-000002"})]
    inputs = [one.model_copy(update={"samples": mixed}), *rest]
    tiny.send(engine, "forward-backward", tiny.forward_backward(inputs=inputs), ("m", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("m", 1))
    assert engine.state.commits[-1].measured == {}


def test_the_answer_of_a_step_has_the_path_of_its_checkpoint(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    answer = tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    result = OptimStepResult.model_validate_json(answer.body)
    assert answer.digest == engine.state.commits[0].digest
    assert (result.step, result.checkpoint_id, result.model) == (1, "arith-000001", "arith")
    assert result.sampler_path.endswith(answer.digest.replace(":", "-"))


@dataclass(frozen=True)
class Resend:
    kind: str
    changed: bool
    expected: str


@pytest.mark.parametrize(
    "case",
    [
        Resend("forward-backward", False, "first answer"),
        Resend("forward-backward", True, "KeyReused"),
        Resend("optim-step", False, "first answer"),
        Resend("optim-step", True, "KeyReused"),
        Resend("zero-grad", False, "first answer"),
    ],
    ids=lambda case: f"{case.kind}-{'changed' if case.changed else 'same'}",
)
def test_a_resent_key(engine: Engine, case: Resend) -> None:
    requests = {
        "forward-backward": (tiny.forward_backward(0), tiny.forward_backward(1)),
        "optim-step": (tiny.optim_step(), tiny.optim_step(learning_rate=0.5)),
        "zero-grad": (Empty(), Empty()),
    }[case.kind]
    tiny.send(engine, "forward-backward", tiny.forward_backward(5), ("other", 0))
    first = tiny.send(engine, case.kind, requests[0], ("s", 1))  # type: ignore[arg-type]
    state = engine.state.report()

    def again() -> object:
        return tiny.send(engine, case.kind, requests[case.changed], ("s", 1))  # type: ignore[arg-type]

    if case.expected == "first answer":
        assert again() == first
    else:
        assert reason(again) == (422, case.expected)
    assert engine.state.report() == state


def test_a_resent_step_is_answered_even_after_the_term_moved_on(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    first = tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1), term=1)
    engine.assign(tiny.assignment(2))
    assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1), term=1) == first
    assert engine.state.report().step == 0


@pytest.mark.parametrize("term", [0, 2])
def test_a_command_of_another_term_is_refused(engine: Engine, term: int) -> None:
    call = lambda: tiny.send(  # noqa: E731
        engine, "forward-backward", tiny.forward_backward(), ("s", 0), term
    )
    assert reason(call) == (409, "StaleTerm")
    assert engine.state.report().pending == 0


def test_a_step_without_gradients_is_refused(engine: Engine) -> None:
    call = lambda: tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 0))  # noqa: E731
    assert reason(call) == (409, "NoGradients")
    assert reason(call) == (409, "NoGradients")
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("t", 1))
    tiny.send(engine, "zero-grad", Empty(), ("t", 2))
    assert reason(call) == (409, "NoGradients")


def test_a_step_whose_gradient_is_zero_is_refused_and_nothing_moves(engine: Engine) -> None:
    sample = TrajectorySample(prompt_token_ids=[1], output_token_ids=[3], output_logprobs=[-1.0])
    equal = TrajectoryPayload(samples=[sample], reward=0.5)
    flat = ForwardBackwardRequest(inputs=[equal, equal], group_size=2)
    answer = tiny.send(engine, "forward-backward", flat, ("s", 0))
    assert json.loads(answer.body)["metrics"]["zero_gradient:mean"] == 1.0
    before, call = (
        adapter(engine),
        lambda: tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1)),
    )
    with pytest.raises(CommandError) as refused:
        call()
    assert (refused.value.status, refused.value.problem.reason) == (409, "NoGradients")
    assert "all 2 accumulated tokens is zero" in refused.value.problem.detail
    assert "rewards differ inside a group" in refused.value.problem.remedy
    assert same(before, adapter(engine))
    assert (engine.state.report().step, engine.state.report().pending) == (0, 1)
    # A batch with a gradient makes it a step.
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 2))
    assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 3)).status == 200


def test_zero_grad_makes_the_step_start_afresh(engine: Engine, volume: Volume) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(9), ("s", 0))
    assert engine.state.report().pending == 1
    answer = tiny.send(engine, "zero-grad", Empty(), ("s", 1))
    assert json.loads(answer.body)["pending"] == 0
    train(engine, 1, "t")
    once = adapter(engine)
    engine.assign(tiny.assignment(2))
    train(engine, 1, "u")
    assert same(once, adapter(engine))


def test_before_the_first_assignment_everything_waits(volume: Volume, policy: Policy) -> None:
    made = tiny.engine(volume.path, volume.base, policy)
    call = lambda: tiny.send(made, "zero-grad", Empty(), ("s", 0))  # noqa: E731
    assert reason(call) == (503, "AwaitingAssignment")
    assert reason(made.state.report) == (503, "AwaitingAssignment")
    made.state.log.close()


# --- assignments --------------------------------------------------------------------------------


def test_a_higher_term_rebases_and_drops_gradients(engine: Engine) -> None:
    train(engine, 1)
    at_one, first = adapter(engine), engine.state.commits[0]
    train(engine, 1, first=1)
    tiny.send(engine, "forward-backward", tiny.forward_backward(7), ("other", 0))
    state = engine.assign(
        tiny.assignment(2, branch="b2", base=first.digest, base_name=first.name, base_step=1)
    )
    assert same(at_one, adapter(engine))
    assert (state.term, state.step, state.run_step, state.pending) == (2, 1, 2, 0)
    train(engine, 1, first=2)
    last = engine.state.commits[-1]
    assert (last.name, last.parent, last.parent_name) == (
        "arith-b2-000002",
        first.digest,
        first.name,
    )
    assert (last.step, last.run_step, last.index, last.branch, last.term) == (2, 3, 3, "b2", 2)


def test_training_from_an_earlier_checkpoint_equals_uninterrupted_training(engine: Engine) -> None:
    train(engine, 2)
    straight, first = adapter(engine), engine.state.commits[0]
    engine.assign(tiny.assignment(2, base=first.digest, base_name=first.name, base_step=1))
    train(engine, 1, "again", first=1)
    assert same(straight, adapter(engine))


def test_an_empty_base_is_the_fresh_adapter(engine: Engine) -> None:
    fresh = adapter(engine)
    train(engine, 1)
    state = engine.assign(tiny.assignment(2))
    assert same(fresh, adapter(engine))
    assert (state.step, state.digest, state.checkpoint) == (0, "", "")


def test_the_same_term_keeps_position_and_gradients(engine: Engine) -> None:
    train(engine, 1)
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 50))
    before = engine.state.report()
    assert engine.assign(tiny.assignment(1, base="sha256:" + "0" * 64)) == before


def test_another_run_at_the_same_term_counts_its_own_steps(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(cursor={"next": 8}), ("s", 1))
    assert engine.state.report().cursor == {"next": 8}
    state = engine.assign(tiny.assignment(1, run="default/second"))
    assert (state.step, state.run_step, state.cursor) == (1, 0, {})
    assert engine.assign(tiny.assignment(1)).cursor == {"next": 8}


def test_a_lower_term_is_refused(engine: Engine) -> None:
    engine.assign(tiny.assignment(3))
    assert reason(lambda: engine.assign(tiny.assignment(2))) == (409, "StaleTerm")


def test_an_assignment_to_a_missing_checkpoint_changes_nothing(engine: Engine) -> None:
    train(engine, 1)
    before, weights = engine.state.report(), adapter(engine)
    missing = tiny.assignment(2, base="sha256:" + "0" * 64, base_name="x", base_step=1)
    assert reason(lambda: engine.assign(missing)) == (409, "CheckpointUnreadable")
    assert engine.state.report() == before
    assert same(weights, adapter(engine))


def test_a_corrupt_checkpoint_is_not_trained_from(engine: Engine) -> None:
    train(engine, 1)
    commit = engine.state.commits[0]
    path = engine.state.store.open("checkpoint", commit.digest).path / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    wanted = tiny.assignment(2, base=commit.digest, base_name=commit.name, base_step=1)
    assert reason(lambda: engine.assign(wanted)) == (409, "CheckpointUnreadable")


# --- failures -----------------------------------------------------------------------------------


def overflowing() -> TrajectoryPayload:
    sample = TrajectorySample(
        prompt_token_ids=[1, 2], output_token_ids=[3], output_logprobs=[-1000.0]
    )
    return TrajectoryPayload(samples=[sample], reward=1.0)


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        n: p.grad.clone() for n, p in policy_of(engine).parameters.items() if p.grad is not None
    }


def test_a_loss_that_overflows_accumulates_nothing(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    before = gradients(engine)
    inputs = [*tiny.trajectories(3), overflowing()]
    request = tiny.forward_backward(inputs=inputs, group_size=None)
    call = lambda: tiny.send(engine, "forward-backward", request, ("s", 1))  # noqa: E731
    assert reason(call) == (409, "NonFiniteLoss")
    assert engine.state.report().pending == 1
    assert same(before, gradients(engine))


def test_a_gradient_that_overflows_is_dropped_and_nothing_is_stepped(engine: Engine) -> None:
    before = adapter(engine)
    request = ForwardRequest(inputs=tiny.trajectories())
    forward = ForwardResult.model_validate_json(
        tiny.send(engine, "forward", request, ("s", 0)).body
    )
    weights = [[3e38 for _ in datum.logprobs] for datum in forward.data]
    for seq in (1, 2):
        backward = BackwardRequest(forward_id=forward.forward_id, weights=weights)
        tiny.send(engine, "backward", backward, ("s", seq))
    answer = tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 3))
    problem = Problem.model_validate_json(answer.body)
    assert (answer.status, problem.reason) == (409, "NonFiniteGradient")
    assert engine.state.problem == problem
    assert same(before, adapter(engine))
    assert (engine.state.report().pending, engine.state.commits) == (0, [])
    assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 3)) == answer
    train(engine, 1, "t")
    assert engine.state.problem is None


@pytest.mark.parametrize("where", ["sync", "commit"])
def test_a_full_volume_loses_nothing_and_the_step_can_be_sent_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    before = adapter(engine)

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def no_space_for_sqlite(*_: object, **__: object) -> None:
        problem = volume_problem(OSError(28, "No space left on device"), Path("/"))
        assert problem is not None
        raise problem

    with monkeypatch.context() as fault:
        if where == "sync":
            fault.setattr("espalier.trainer.volume.checkpoint_store.sync", no_space)
        else:
            fault.setattr(engine.state.log, "commit", no_space_for_sqlite)
        call = lambda: tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))  # noqa: E731
        assert reason(call) == (507, "VolumeFull")
    assert same(before, adapter(engine))
    assert engine.state.problem is not None
    assert engine.state.problem.reason == "VolumeFull"
    assert engine.state.report().pending == 1
    checkpoints = engine.state.store.model_directory("arith").parents[1] / "checkpoints" / "arith"
    assert [p.name for p in checkpoints.glob("*")] == []
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    assert engine.state.problem is None
    assert engine.state.report().step == 1


def test_a_log_that_cannot_grow_refuses_a_command_and_keeps_the_gradients(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    before = gradients(engine)
    database = engine.state.log._db
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    answered, seq = [], 1
    while not answered or answered[-1] == 200:
        request = ForwardRequest(inputs=tiny.trajectories(seq, groups=12))
        try:
            answered.append(tiny.send(engine, "forward", request, ("s", seq)).status)
        except CommandError as error:
            assert error.problem.reason == "VolumeFull"
            answered.append(error.status)
        seq += 1
    assert answered[-1] == 507
    database.execute("PRAGMA max_page_count = 1073741823")
    assert same(before, gradients(engine))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("t", 0))
    assert engine.state.report().step == 1


# --- forward and backward -----------------------------------------------------------------------


def test_forwards_are_kept_for_the_latest_few_and_until_the_next_step(engine: Engine) -> None:
    request = ForwardRequest(inputs=tiny.trajectories())
    ids = [
        ForwardResult.model_validate_json(
            tiny.send(engine, "forward", request, ("s", seq)).body
        ).forward_id
        for seq in range(FORWARDS_KEPT + 1)
    ]
    lengths = [len(t.samples[0].output_token_ids) for t in tiny.trajectories()]
    weights = [[0.1] * length for length in lengths]

    def backward(forward_id: str, seq: int) -> object:
        request = BackwardRequest(forward_id=forward_id, weights=weights)
        return tiny.send(engine, "backward", request, ("b", seq))

    assert reason(lambda: backward(ids[0], 0)) == (404, "ForwardNotFound")
    backward(ids[1], 1)
    tiny.send(engine, "optim-step", tiny.optim_step(), ("b", 2))
    assert engine.state.commits[0].loss == "custom"
    assert reason(lambda: backward(ids[-1], 3)) == (404, "ForwardNotFound")


@pytest.mark.parametrize("rows", [1, 7])
def test_backward_wants_a_weight_for_every_logprob(engine: Engine, rows: int) -> None:
    request = ForwardRequest(inputs=tiny.trajectories())
    answer = tiny.send(engine, "forward", request, ("s", 0))
    forward_id = json.loads(answer.body)["forward_id"]
    weights = [[0.0] * 99] * rows
    backward = BackwardRequest(forward_id=forward_id, weights=weights)
    call = lambda: tiny.send(engine, "backward", backward, ("s", 1))  # noqa: E731
    assert reason(call) == (422, "InvalidRequest")


def test_a_checkpoint_that_was_written_but_not_logged_is_adopted(
    engine: Engine, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(engine, 1)
    tiny.send(engine, "forward-backward", tiny.forward_backward(4), ("t", 0))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as fault:
        fault.setattr(engine.state.log, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            tiny.send(engine, "optim-step", tiny.optim_step(cursor={"next": 3}), ("t", 1))
    engine.state.log.close()
    again = tiny.engine(volume.path, volume.base, policy_of(engine))
    state = again.state.report()
    assert (state.step, state.pending, state.cursor) == (2, 0, {"next": 3})
    last = again.state.commits[-1]
    stored = again.state.store.verify("checkpoint", last.digest)
    assert same(load_file(stored.path / "adapter_model.safetensors"), adapter(again))
    answer = tiny.send(again, "optim-step", tiny.optim_step(cursor={"next": 3}), ("t", 1))
    assert (answer.status, answer.digest) == (200, last.digest)
    assert len(again.state.commits) == 2
    again.state.log.close()


# --- Order and faults of the volume -------------------------------------------------------------


def test_an_overtaken_command_is_refused_and_not_reordered(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(0), ("s", 4))
    late = lambda: tiny.send(engine, "zero-grad", Empty(), ("s", 3))  # noqa: E731
    assert reason(late) == (409, "OutOfOrder")
    assert engine.state.report().pending == 1
    tiny.send(engine, "forward-backward", tiny.forward_backward(1), ("other", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 9))
    assert engine.state.report().step == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "x"), "VolumeFull"),
        (OSError(errno.EDQUOT, "x"), "VolumeFull"),
        (OSError(errno.EROFS, "x"), "VolumeReadOnly"),
        (OSError(errno.EIO, "x"), "VolumeFailing"),
        (Exception("I/O error: Input/output error (os error 5)"), "VolumeFailing"),
        (Exception("I/O error: Read-only file system (os error 30)"), "VolumeReadOnly"),
    ],
)
def test_a_fault_of_the_volume_refuses_the_step_and_keeps_the_gradients(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))

    def fail(*_: object) -> None:
        raise error

    call = lambda: tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))  # noqa: E731
    with monkeypatch.context() as fault:
        fault.setattr("espalier.trainer.volume.checkpoint_store.sync", fail)
        assert reason(call) == (507, expected)
    assert engine.state.report().pending == 1
    assert call() is not None
    assert engine.state.report().step == 1


def test_a_body_that_cannot_be_removed_does_not_undo_the_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "x")

    with monkeypatch.context() as fault:
        fault.setattr(Path, "unlink", fail)
        first = tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1)) == first
    assert engine.state.report().step == 1


def test_gradients_survive_a_later_forward_backward_that_fails(engine: Engine) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    before = gradients(engine)
    bad = tiny.forward_backward(1, loss_fn="ppo", loss_fn_config={"no_such_key": 1.0})
    assert reason(lambda: tiny.send(engine, "forward-backward", bad, ("s", 1)))[0] == 422
    assert same(before, gradients(engine))
    assert engine.state.report().pending == 1
