"""The penalty on the distance from the base, against its formulas."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.test_gradients import difference, perturb, taken
from tests.trainer.tiny import Volume

from espalier.api.objective import Kl
from espalier.api.wire.gradients import BackwardRequest, ForwardBackwardRequest, ForwardRequest
from espalier.trainer.batch.data import Datum, datums
from espalier.trainer.batch.kl import of_tokens, with_reference
from espalier.trainer.batch.objective import call_spec
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError

ON = {"coefficient": 0.5, "reference": "Base"}


def request(kl: dict[str, Any], **fields: Any) -> ForwardBackwardRequest:
    return tiny.forward_backward(kl=kl, **fields)


def data(policy: Policy) -> list[Datum]:
    return datums(tiny.forward_backward(), policy.limits, policies_compared=True)


@pytest.mark.parametrize("estimator", ["K2", "K3"])
def test_the_penalty_in_the_loss_is_its_formula_by_autograd(estimator: str) -> None:
    lp = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -0.5, -0.5, -2.9], dtype=torch.float64)
    trained = torch.tensor([True, True, True, False])
    d = lp - reference
    by_hand = (d**2 / 2 if estimator == "K2" else torch.exp(-d) - 1 + d)[trained].sum() * 0.5
    by_hand.backward()
    kl = Kl.model_validate({**ON, "placement": "Loss", "estimator": estimator})
    found = of_tokens(kl, lp.detach(), reference, trained)
    assert float(found.loss.sum()) == pytest.approx(by_hand.item(), rel=1e-12)
    assert lp.grad is not None
    assert found.gradient.tolist() == pytest.approx(lp.grad.tolist(), rel=1e-12, abs=1e-15)
    third = (torch.exp(-d) - 1 + d)[trained].sum().item()
    assert (found.referred, found.distance) == (3, pytest.approx(third, rel=1e-12))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # d is [0.5, -1.5], [1.0]: its mean is 0.
        ({}, [[0.75, 1.75], [-2.5]]),
        # The first token of two answers for half of the second's as well.
        ({"discount": 0.5}, [[1.125, 1.75], [-2.5]]),
        # d*d/2 is [0.125, 1.125], [0.5], its mean 7/12.
        (
            {"estimator": "K2"},
            [[1 + 0.5 * (7 / 12 - 0.125), 1 + 0.5 * (7 / 12 - 1.125)], [-2 + 0.5 * (7 / 12 - 0.5)]],
        ),
    ],
)
def test_the_penalty_in_the_advantages_is_the_cookbooks(
    settings: dict[str, Any], expected: list[list[float]]
) -> None:
    one = Datum((1,), (2, 3), (-1.0, -2.0), 1.0, 0.0, 0, 0)
    other = Datum((1,), (4,), (-1.0,), -2.0, 0.0, 1, 0)
    reference = [[-1.5, -0.5], [-2.0]]
    held = with_reference(call_spec(request({**ON, **settings})), [one, other], reference)
    assert [list(d.advantages) for d in held] == [pytest.approx(row) for row in expected]
    assert [list(d.reference_logprobs) for d in held] == reference


def test_the_reference_is_the_base_and_the_policy_stays_what_it_was(policy: Policy) -> None:
    compute, batch = LocalCompute(policy), data(policy)
    base = compute.score(compute.admit(batch))
    perturb(policy)
    moved = compute.score(compute.admit(batch))
    referred = compute.refer(compute.admit(batch))
    assert referred.logprobs == [pytest.approx(row, abs=1e-5) for row in base]
    assert compute.score(compute.admit(batch)) == moved
    assert moved != base
    assert all(parameter.requires_grad for parameter in policy.parameters.values())


@pytest.mark.parametrize("placement", ["Advantage", "Loss"])
def test_a_command_adds_the_penalty_to_the_gradient(
    engine: Engine, policy: Policy, placement: str
) -> None:
    perturb(policy)
    compute, batch = LocalCompute(policy), data(policy)
    held = [
        replace(datum, reference_logprobs=tuple(row))
        for datum, row in zip(batch, compute.refer(compute.admit(batch)).logprobs, strict=True)
    ]
    now = compute.score(compute.admit(batch))
    weights = []
    for datum, row in zip(held, now, strict=True):
        lp = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        q, reference = (
            torch.tensor(v, dtype=torch.float64)
            for v in (datum.sampling_logprobs, datum.reference_logprobs)
        )
        advantage = torch.full_like(q, datum.advantage)
        if placement == "Advantage":
            every = [
                a - b
                for d in held
                for a, b in zip(d.sampling_logprobs, d.reference_logprobs, strict=True)
            ]
            advantage += 0.5 * (sum(every) / len(every) - (q - reference))
        loss = -((lp - q).exp() * advantage).sum()
        if placement == "Loss":
            d = lp - reference
            loss = loss + 0.5 * (torch.exp(-d) - 1 + d).sum()
        loss.backward()
        assert lp.grad is not None
        weights.append((-lp.grad).tolist())
    policy.drop_gradients()
    compute.add_weights(compute.admit(batch), weights, given={}, group_size=3)
    by_hand = taken(policy)
    wanted = request({**ON, "placement": placement})
    answer = json.loads(tiny.send(engine, "forward-backward", wanted, ("s", 0)).body)
    assert difference(taken(policy), by_hand) < 1e-4
    assert answer["metrics"]["reference_kl:mean"] > 0


def test_a_coefficient_of_zero_measures_and_changes_nothing(engine: Engine, policy: Policy) -> None:
    perturb(policy)
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    plain = taken(policy)
    measured = request({"reference": "Base"})
    told = json.loads(tiny.send(engine, "forward-backward", measured, ("s", 1)).body)
    assert difference(taken(policy), plain) == 0
    assert told["metrics"]["reference_kl:mean"] > 0


def test_a_forward_tells_what_the_reference_thinks_of_the_same_tokens(
    engine: Engine, policy: Policy
) -> None:
    inputs = tiny.trajectories(0)
    before = json.loads(tiny.send(engine, "forward", ForwardRequest(inputs=inputs), ("s", 0)).body)
    # What HUD's client knows of a datum, and no more.
    assert "reference_logprobs" not in before["data"][0]
    perturb(policy)
    asked = ForwardRequest(inputs=inputs, reference="base")
    after = json.loads(tiny.send(engine, "forward", asked, ("s", 1)).body)
    for datum, moved in zip(before["data"], after["data"], strict=True):
        assert moved["reference_logprobs"] == pytest.approx(datum["logprobs"], abs=1e-5)
        assert moved["logprobs"] != pytest.approx(datum["logprobs"], abs=1e-3)
    # It may still be learnt from.
    weights = [[1.0] * len(datum["mask"]) for datum in after["data"]]
    custom = BackwardRequest(forward_id=after["forward_id"], weights=weights)
    assert tiny.send(engine, "backward", custom, ("s", 2)).status == 200


def test_a_forward_without_a_reference_is_on_the_wire_what_it_was_before_there_were_any() -> None:
    """A trainer of another version takes it, and a resend after an upgrade has the same digest."""
    plain = ForwardRequest(inputs=tiny.trajectories(0))
    assert "reference" not in json.loads(plain.model_dump_json())
    near = plain.model_copy(update={"reference": "base"})
    assert json.loads(near.model_dump_json())["reference"] == "base"


def test_a_model_that_is_trained_in_full_has_no_base_left(volume: Volume) -> None:
    full = tiny.policy(volume.path, volume.base, tiny.FULL)
    engine = tiny.engine(volume.path, volume.base, full)
    engine.assign(tiny.assignment())
    with pytest.raises(CommandError, match="trains the base itself") as refused:
        tiny.send(engine, "forward-backward", request(ON), ("s", 0))
    assert (refused.value.status, refused.value.problem.reason) == (422, "InvalidRequest")
    assert "adapter.type LoRA" in refused.value.problem.remedy
    forward = ForwardRequest(inputs=tiny.trajectories(0), reference="base")
    with pytest.raises(CommandError, match="reference: is the base, and spec"):
        tiny.send(engine, "forward", forward, ("s", 1))
    engine.state.log.close()


@pytest.mark.parametrize(
    ("kl", "loss", "field"),
    [
        ({"coefficient": 0.1}, "ppo", "kl.reference"),
        ({**ON, "checkpoint": "arith-000001"}, "ppo", "kl.checkpoint"),
        ({"reference": "Checkpoint"}, "ppo", "kl.checkpoint"),
        ({**ON, "placement": "Loss", "estimator": "K1"}, "ppo", "kl.estimator"),
        ({**ON, "placement": "Loss", "discount": 0.5}, "ppo", "kl.discount"),
        (ON, "cross_entropy", "kl.placement"),
    ],
)
def test_what_does_not_go_together_is_refused(kl: dict[str, Any], loss: str, field: str) -> None:
    with pytest.raises(CommandError, match=field) as refused:
        call_spec(request(kl, loss_fn=loss))
    assert refused.value.status == 422


def held_near(volume: Volume, steps: int = 1) -> tuple[Engine, Policy, str]:
    """An engine some steps from the base, its policy, and the name of its latest checkpoint."""
    policy = tiny.policy(volume.path, volume.base)
    engine = tiny.engine(volume.path, volume.base, policy)
    engine.assign(tiny.assignment())
    for step in range(steps):
        tiny.send(engine, "forward-backward", tiny.forward_backward(), ("first", 2 * step))
        tiny.send(engine, "optim-step", tiny.optim_step(), ("first", 2 * step + 1))
    return engine, policy, engine.state.position.name


def test_the_reference_is_the_checkpoint_that_the_run_names(volume: Volume) -> None:
    engine, policy, name = held_near(volume)
    compute, batch = engine.state.compute, data(policy)
    wanted = compute.score(compute.admit(batch))
    perturb(policy)
    moved = compute.score(compute.admit(batch))
    compute.hold_reference(engine.state.references.find(name).path)
    assert compute.refer(compute.admit(batch)).logprobs == wanted
    assert compute.score(compute.admit(batch)) == moved != wanted
    # In float64: K3 of the two, over every token.
    near = request({"reference": "Checkpoint", "checkpoint": name})
    told = json.loads(tiny.send(engine, "forward-backward", near, ("s", 0)).body)["metrics"]
    lp, reference = (
        torch.tensor([v for row in rows for v in row], dtype=torch.float64)
        for rows in (moved, wanted)
    )
    third = (torch.exp(reference - lp) - 1 + lp - reference).mean().item()
    assert told["reference_kl:mean"] == pytest.approx(third, rel=1e-4)
    assert third > 1e-4
    engine.state.log.close()


def pending_near(volume: Volume) -> tuple[dict[str, torch.Tensor], str, Path]:
    """A trainer that died with gradients near a checkpoint: these, and the checkpoint's place."""
    engine, policy, name = held_near(volume)
    near = request({**ON, "reference": "Checkpoint", "checkpoint": name, "placement": "Loss"})
    place = engine.state.references.find(name).path
    # Away from the reference, or the penalty has no slope.
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 1))
    tiny.send(engine, "forward-backward", near, ("s", 2))
    engine.state.log.close()
    return taken(policy), name, place


@pytest.mark.parametrize("reference", ["There", "Gone"])
def test_a_replay_after_a_crash_has_the_same_gradient_with_its_reference_or_without(
    volume: Volume, reference: str
) -> None:
    before, _, place = pending_near(volume)
    if reference == "Gone":
        shutil.rmtree(place)
    again = tiny.policy(volume.path, volume.base)
    restarted = tiny.engine(volume.path, volume.base, again)
    assert difference(taken(again), before) == 0
    assert restarted.state.report().problem is None
    restarted.state.log.close()


@pytest.mark.parametrize("ends", ["zero-grad", "optim-step"])
def test_gradients_that_a_log_cannot_restore_are_told_and_never_stepped_on(
    volume: Volume, ends: str
) -> None:
    _, name, place = pending_near(volume)
    shutil.rmtree(place)
    # As a trainer of an earlier version left its log.
    for kept in volume.path.rglob("*.referred"):
        kept.unlink()
    engine = tiny.engine(volume.path, volume.base)
    told = engine.state.report()
    assert told.problem is not None
    assert told.problem.reason == "GradientsLost"
    assert name in told.problem.detail
    assert "kl.reference.checkpointRef" in told.problem.remedy
    assert told.pending == 1
    with pytest.raises(CommandError, match="GradientsLost"):
        tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 3))
    if ends == "zero-grad":
        tiny.send(engine, "zero-grad", Empty(), ("s", 3))
    else:
        # HUD's clients and Tinker's have no other end of a batch.
        failed = tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 3))
        assert (failed.status, "GradientsLost" in failed.body) == (409, True)
        assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 3)) == failed
    assert engine.state.report().problem is None
    assert engine.state.report().pending == 0
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", 4))
    assert tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 5)).status == 200
    engine.state.log.close()


def test_a_reference_takes_its_memory_from_batches_and_gives_it_back(volume: Volume) -> None:
    engine, policy, name = held_near(volume)
    compute = engine.state.compute
    assert isinstance(compute, LocalCompute)
    free, path = compute.planner.available, engine.state.references.find(name).path
    taken_up = sum(4 * parameter.numel() for parameter in policy.parameters.values())
    compute.hold_reference(path)
    assert compute.planner.available == free - taken_up
    compute.hold_reference(None)
    assert compute.planner.available == free
    compute.planner = replace(compute.planner, available=taken_up)
    with pytest.raises(CommandError, match=r"kl\.reference: the checkpoint's adapter takes"):
        compute.hold_reference(path)
    assert compute.planner.available == taken_up
    engine.state.log.close()


def test_a_reference_that_is_not_on_the_volume_is_refused_by_name(engine: Engine) -> None:
    absent = request({"reference": "Checkpoint", "checkpoint": "arith-000009"})
    with pytest.raises(CommandError, match="arith-000009, and no such checkpoint") as refused:
        tiny.send(engine, "forward-backward", absent, ("s", 0))
    assert refused.value.status == 422
