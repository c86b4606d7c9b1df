"""Going on from a checkpoint: bit for bit where Adam's state is kept, afresh where it is not."""

from __future__ import annotations

import torch
from tests.trainer import tiny
from tests.trainer.tiny import Volume

from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy


def train(engine: Engine, steps: range) -> None:
    for step in steps:
        tiny.send(engine, "forward-backward", tiny.forward_backward(step), ("s", 2 * step))
        tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 2 * step + 1))


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    assert isinstance(engine.state.compute, LocalCompute)
    return {n: p.detach().clone() for n, p in engine.state.compute.policy.parameters.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def restarted(engine: Engine, volume: Volume, policy: Policy) -> Engine:
    engine.state.log.close()
    return tiny.engine(volume.path, volume.base, policy)


def rebase(engine: Engine, optimizer_state: str, term: int) -> None:
    """Stands on the first checkpoint again, as a fork of it does."""
    origin = engine.state.commits[0]
    engine.assign(
        tiny.assignment(
            term,
            branch=f"b{term}",
            base=origin.digest,
            base_name=origin.name,
            base_step=origin.step,
            optimizer_state=optimizer_state,
        )
    )


def test_three_steps_a_restart_and_three_more_are_six_steps(
    engine: Engine, volume: Volume, policy: Policy
) -> None:
    train(engine, range(3))
    middle = engine.state.commits[-1]
    train(engine, range(3, 6))
    straight, moments = weights(engine), tiny.moments(engine).tensors()
    engine.assign(
        tiny.assignment(
            2, branch="b2", base=middle.digest, base_name=middle.name, base_step=middle.step
        )
    )
    resumed = restarted(engine, volume, policy)
    for step in range(3, 6):
        tiny.send(resumed, "forward-backward", tiny.forward_backward(step), ("t", 2 * step))
        tiny.send(resumed, "optim-step", tiny.optim_step(), ("t", 2 * step + 1))
    assert resumed.state.position.step == 6
    assert same(weights(resumed), straight)
    assert same(tiny.moments(resumed).tensors(), moments)
    assert tiny.moments(resumed).steps == 6
    resumed.state.log.close()


def test_a_step_draws_no_random_number(engine: Engine) -> None:
    """So a checkpoint needs no state of a generator to be gone on from exactly."""
    before = torch.get_rng_state()
    train(engine, range(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fork_keeps_the_weights_and_as_asked_adams_state(engine: Engine) -> None:
    train(engine, range(2))
    after_two = weights(engine)
    rebase(engine, "Keep", 2)
    origin, kept = weights(engine), tiny.moments(engine)
    rebase(engine, "Reset", 3)
    assert same(weights(engine), origin)
    assert kept.steps == 1
    assert tiny.moments(engine).steps == 0
    assert not any(value.any() for value in tiny.moments(engine).tensors().values())
    tiny.send(engine, "forward-backward", tiny.forward_backward(1), ("r", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("r", 1))
    assert not same(weights(engine), after_two)


def test_a_fork_without_adams_state_stays_so_over_a_restart_until_its_first_step(
    engine: Engine, volume: Volume, policy: Policy
) -> None:
    train(engine, range(2))
    rebase(engine, "Reset", 2)
    engine = restarted(engine, volume, policy)
    assert tiny.moments(engine).steps == 0
    tiny.send(engine, "forward-backward", tiny.forward_backward(1), ("r", 0))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("r", 1))
    moments = tiny.moments(engine).tensors()
    engine = restarted(engine, volume, policy)
    assert tiny.moments(engine).steps == 1
    assert same(tiny.moments(engine).tensors(), moments)
    engine.state.log.close()
