"""Git is the contract: what a client-driven run gives binds its client, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import run as run_of
from tests.trainer import tiny

from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.base import Wire
from espalier.api.wire.declared import Declared
from espalier.api.wire.gradients import BackwardRequest
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.core.run.declared import declared
from espalier.trainer.engine.commands import Command, Sent
from espalier.trainer.engine.declared import check
from espalier.trainer.engine.engine import Engine
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.command_log import Key, Kind


def client_run(**given: Any) -> TrainingRun:
    """A run with driver Client that gives just this."""
    whole = run_of().model_dump(mode="json", by_alias=True, exclude_unset=True)
    spec = {"modelRef": {"name": "m"}, "driver": "Client", "steps": 10, **given}
    return TrainingRun.model_validate({**whole, "spec": spec})


def bound(**given: Any) -> Declared:
    found = declared(client_run(**given))
    assert found is not None
    return found


def named(sizes: list[int]) -> list[TrajectoryPayload]:
    """Groups by id, of these sizes."""
    ids = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    return [
        one.model_copy(update={"group_id": name})
        for one, name in zip(tiny.trajectories(groups=1, size=len(ids)), ids, strict=True)
    ]


def advised(*advantages: float | None) -> list[TrajectoryPayload]:
    trajectories = tiny.trajectories(groups=1, size=len(advantages))
    return [
        one.model_copy(update={"advantage": value})
        for one, value in zip(trajectories, advantages, strict=True)
    ]


FB, STEP = tiny.forward_backward, tiny.optim_step
CUSTOM = BackwardRequest(forward_id="forward-1", weights=[[1.0]])
PPO = {"name": "ppo", "clipLow": "0.8"}
CONSTANT = {"name": "importance_sampling", "aggregation": "Constant", "aggregationConstant": 8}
DIFFERENT: dict[str, tuple[dict[str, Any], Wire, str, str, str]] = {
    "loss": (
        *({"loss": {"name": "cispo"}}, FB()),
        *("loss", "cispo (clip_high_threshold 4, clip_low_threshold 0)", "importance_sampling"),
    ),
    "setting of the loss": (
        *({"loss": PPO}, FB(loss_fn="ppo", loss_fn_config={"clip_low_threshold": 0.9})),
        *("loss", "clip_low_threshold 0.8", "clip_low_threshold 0.9"),
    ),
    "a custom loss": ({"loss": PPO}, CUSTOM, "loss", "ppo", "a loss of its own"),
    "a custom loss has its own advantages": (
        *({"advantage": {"scale": "None"}}, CUSTOM),
        *("advantage.source", "Estimated", "a loss of its own"),
    ),
    "learning rate": (
        *({"learningRate": "1e-5"}, STEP(learning_rate=1e-2)),
        *("learningRate", "1e-05", "0.01"),
    ),
    "optimizer": (
        *({"optimizer": {"weightDecay": "0.1"}}, STEP()),
        *("optimizer.weightDecay", "0.1", "0.0"),
    ),
    "default of the optimizer": (
        *({"optimizer": {"weightDecay": "0"}}, STEP(beta2=0.999)),
        *("optimizer.beta2", "0.95", "0.999"),
    ),
    "scale": (
        *({"advantage": {"scale": "GroupStd"}}, FB()),
        *("advantage.scale", "GroupStd", "None"),
    ),
    "estimator": (
        *({"advantage": {"estimator": "LeaveOneOut"}}, FB()),
        *("advantage.estimator", "LeaveOneOut", "GroupMean"),
    ),
    "aggregation": (
        *({"loss": {"name": "importance_sampling", "aggregation": "TokenMean"}}, FB()),
        *("loss.aggregation", "TokenMean", "TokenSum"),
    ),
    "default of the aggregation": (
        *({"loss": {"name": "importance_sampling"}}, FB(aggregation="SequenceMean")),
        *("loss.aggregation", "TokenSum", "SequenceMean"),
    ),
    "constant of the aggregation": (
        *({"loss": CONSTANT}, FB(aggregation="Constant", aggregation_constant=4)),
        *("loss.aggregationConstant", "8", "4"),
    ),
    "level of the ratio": (
        *({"loss": {"name": "ppo", "importanceLevel": "Sequence"}}, FB(loss_fn="ppo")),
        *("loss.importanceLevel", "Sequence", "Token"),
    ),
    "anchor": (
        *({"loss": {"name": "importance_sampling", "ratioAnchor": "Trainer"}}, FB()),
        *("loss.ratioAnchor", "Trainer", "Sampler"),
    ),
    "correction": (
        *({"offPolicyCorrection": {"mode": "TokenMask", "minRatio": "0.5"}}, FB()),
        *("offPolicyCorrection", "TokenMask (0.5 to 2)", "None"),
    ),
    "correction of a custom loss": (
        *({"offPolicyCorrection": {"mode": "TokenMask"}}, CUSTOM),
        *("offPolicyCorrection", "TokenMask (0 to 2)", "a loss of its own"),
    ),
    "entropy": (
        *({"loss": {"name": "ppo", "entropyCoefficient": "0.01"}}, FB(loss_fn="ppo")),
        *("loss.entropyCoefficient", "0.01", "0.0"),
    ),
    "penalty": (
        *({"kl": {"coefficient": "0.1", "reference": {"base": {}}}}, FB()),
        *("kl", "0.1 K1 in Advantage, discount 0, reference Base", "0 K1 in Advantage"),
    ),
    "penalty of a custom loss": (
        *({"kl": {"reference": {"base": {}}}}, CUSTOM),
        *("kl", "0 K1 in Advantage", "a loss of its own"),
    ),
    "estimated where it shall be given": (
        *({"advantage": {"source": "Precomputed"}}, FB(inputs=advised(1.0, None), group_size=1)),
        *("advantage.source", "Precomputed", "Estimated"),
    ),
    "given where it shall be estimated": (
        *({"advantage": {"source": "Estimated"}}, FB(inputs=advised(1.0, 1.0), group_size=2)),
        *("advantage.source", "Estimated", "Precomputed"),
    ),
    "size of a group": ({"groupSize": 8}, FB(), "groupSize", "8", "3"),
    "size of the one group": (
        *({"groupSize": 8}, FB(inputs=tiny.trajectories(groups=1, size=5), group_size=None)),
        *("groupSize", "8", "5"),
    ),
    "size of a named group": (
        *({"groupSize": 2}, FB(inputs=named([2, 3]), group_size=None)),
        *("groupSize", "2", "3"),
    ),
    "temperature": (
        *({"sampling": {"temperature": "0.7"}}, FB()),
        *("sampling.temperature", "0.7", "1.0"),
    ),
    "length of an answer": (
        *({"sampling": {"maxTokens": 1}}, FB()),
        *("sampling.maxTokens", "1", "an answer of "),
    ),
}


@pytest.mark.parametrize(
    ("given", "request_", "field", "wanted", "said"), DIFFERENT.values(), ids=DIFFERENT
)
def test_a_command_that_differs_is_refused_with_both_values(
    given: dict[str, Any], request_: Wire, field: str, wanted: str, said: str
) -> None:
    with pytest.raises(CommandError) as refused:
        check(bound(**given), request_, step=1)
    problem = refused.value.problem
    assert (refused.value.status, problem.reason) == (409, "RunSaysOtherwise")
    assert problem.detail.startswith(f"spec.{field} of TrainingRun r is ")
    both = problem.detail.split(", and the command says ")
    assert (wanted in both[0], said in both[1]) == (True, True)
    assert f"edit spec.{field}, or take it out" in problem.remedy


@pytest.mark.parametrize(
    ("given", "request_"),
    [
        ({"loss": PPO}, FB(loss_fn="ppo")),
        ({"loss": {"name": "gspo"}}, FB(loss_fn="gspo")),
        ({"loss": {"name": "importance_sampling"}, "groupSize": 3}, FB()),
        ({"learningRate": "1e-2", "optimizer": {}}, STEP()),
        ({"advantage": {}, "sampling": {"temperature": "1"}}, FB()),
        ({"advantage": {"source": "Precomputed"}}, FB(inputs=advised(1.0, 0.0), group_size=2)),
        ({"groupSize": 2}, FB(inputs=named([2, 2, 2]), group_size=None)),
        ({"learningRate": "1e-5"}, CUSTOM),
        ({"loss": CONSTANT}, FB(aggregation="Constant", aggregation_constant=8)),
        (
            {"offPolicyCorrection": {"mode": "TokenMask", "maxRatio": "2.0"}},
            FB(correction={"mode": "TokenMask"}),
        ),
    ],
)
def test_a_command_that_says_the_same_is_taken(given: dict[str, Any], request_: Wire) -> None:
    check(bound(**given), request_, step=1)


def test_what_a_run_leaves_out_binds_nobody_and_a_runner_is_not_bound() -> None:
    assert declared(client_run()) is None
    assert declared(client_run(checkpoint={"keepLast": 3}, suspend=False)) is None
    assert declared(run_of()) is None


def test_a_refused_command_changes_nothing_and_an_answered_one_is_answered_again(
    engine: Engine,
) -> None:
    def send(seq: int, kind: Kind, request: Wire, said: Declared | None) -> int:
        command = Command(Key("s", seq), Sent(kind, request, None, said))
        return engine.execute(command).status

    assert send(0, "forward-backward", FB(), bound(loss={"name": "importance_sampling"})) == 200
    with pytest.raises(CommandError, match=r"spec\.learningRate of TrainingRun r is 1e-05"):
        send(1, "optim-step", STEP(), bound(learningRate="1e-5"))
    assert (engine.state.report().pending, engine.state.commits) == (1, [])
    assert send(1, "optim-step", STEP(), bound(learningRate="1e-2")) == 200
    # Its answer was lost, and Git was edited meanwhile: what was applied stays applied.
    assert send(1, "optim-step", STEP(), bound(learningRate="1e-5")) == 200
    assert len(engine.state.commits) == 1


def test_a_schedule_binds_a_client_to_the_rate_of_the_very_step(engine: Engine) -> None:
    falling = {"type": "Linear", "warmupSteps": 1, "minimum": "0"}
    said = bound(learningRate="1e-2", steps=3, learningRateSchedule=falling)

    def step(seq: int, rate: float) -> int:
        tiny.send(engine, "forward-backward", FB(), ("s", seq))
        sent = Sent("optim-step", STEP(learning_rate=rate), None, said)
        return engine.execute(Command(Key("s", seq + 1), sent)).status

    # The rate of the step after the warm-up is that of the first; the third has half of it.
    assert [step(0, 1e-2), step(2, 1e-2)] == [200, 200]
    with pytest.raises(CommandError) as refused:
        step(4, 1e-2)
    assert refused.value.status == 409
    assert refused.value.problem.detail == (
        "spec.learningRate of TrainingRun r is 0.005 at step 3 of 3 (learningRateSchedule Linear), "
        "and the command says 0.01; nothing was applied"
    )
    # A client that computes it in another order rounds otherwise.
    assert step(6, 5e-3 * (1 + 1e-15)) == 200
    rates = [commit.metrics["optimizer/learning_rate"] for commit in engine.state.commits]
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3])
