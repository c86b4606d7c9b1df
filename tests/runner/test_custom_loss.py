"""A loss that a user wrote: its gradient, what it is given, and how one that misbehaves ends."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.runner.bench import Bench
from tests.runner.test_with_trainer import Passage, checkpoints, drive, metrics_of, passage_at

from espalier.api.run.loss import CustomRef
from espalier.api.wire.gradients import ForwardResult
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client import GatewayClient, RefusedError
from espalier.loop.custom_loss import CustomGradients, LossDatum
from espalier.rewards.failure import Failure
from espalier.runner.custom_loss import child
from espalier.runner.custom_loss.declared_loss import DeclaredLoss, open_loss
from espalier.runner.custom_loss.process import Call, asked
from espalier.runner.run_end import UserError
from espalier.runner.scoring import seccomp
from espalier.trainer.batch.losses import Tokens, loss_spec, token_losses

pytestmark = pytest.mark.skipif(
    not seccomp.supported(), reason="this kernel has no seccomp filters"
)

# The formulas of the built-in losses, as a user writes them.
BUILT_IN = """
import autograd.numpy as np

def total(data, logprobs, of_token):
    rows = zip(data, logprobs)
    return sum(np.sum(of_token(lp, lp - row.sampling_logprobs, row)) for row, lp in rows)

def importance_sampling(data, logprobs):
    return total(data, logprobs, lambda lp, d, row: -np.exp(d) * row.advantages)

def ppo(data, logprobs):
    def of_token(lp, d, row):
        ratio, a = np.exp(d), row.advantages
        return -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
    return total(data, logprobs, of_token)

def cispo(data, logprobs):
    def of_token(lp, d, row):
        weight = np.clip(np.exp(row.logprobs - row.sampling_logprobs), 0.0, 4.0)
        return -weight * row.advantages * lp
    return total(data, logprobs, of_token)

def dro(data, logprobs):
    return total(data, logprobs, lambda lp, d, row: -(lp * row.advantages - 0.025 * d**2))

def gspo(data, logprobs):
    loss = 0.0
    for row, lp in zip(data, logprobs):
        ratio, a = np.exp(np.mean(lp - row.sampling_logprobs)), row.advantages
        loss = loss - np.sum(np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a))
    return loss
"""
HEAD = "import autograd.numpy as np\ndef loss(data, logprobs):\n    "
GOOD = HEAD + "return sum(np.sum(lp) for lp in logprobs), {'tokens': len(logprobs[0])}"


def drawn(count: int = 6) -> list[LossDatum]:
    """Samples of several lengths, whose ratios are on both sides of every clip."""
    numbers = random.Random(0)
    data = []
    for place in range(count):
        logprobs = [numbers.uniform(-3, -0.1) for _ in range(3 + place)]
        data.append(
            LossDatum(
                reward=float(place % 2),
                traj_idx=place,
                group_idx=place // 2,
                logprobs=logprobs,
                sampling_logprobs=[lp + numbers.uniform(-0.5, 0.5) for lp in logprobs],
                mask=[1.0] * len(logprobs),
                advantages=[numbers.uniform(-1, 1)] * len(logprobs),
            )
        )
    return data


def called(source: str, function: str = "loss", data: list[LossDatum] | None = None) -> Any:
    """In this process: for what the function gives, and not for what it may reach."""
    rows = [datum.model_dump() for datum in data or drawn()]
    return child.answer({"source": source, "file": "loss.py", "function": function, "data": rows})


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "dro", "gspo"])
def test_the_formula_of_a_built_in_loss_has_its_value_and_its_gradient(name: str) -> None:
    data, spec = drawn(), loss_spec(name, None)
    found = called(BUILT_IN, name, data)
    losses = 0.0
    for datum, row in zip(data, found["gradient"], strict=True):
        of = (datum.logprobs, datum.sampling_logprobs, datum.advantages, datum.mask)
        lp, q, a, w = (torch.tensor(values, dtype=torch.float64) for values in of)
        expected = token_losses(spec, Tokens(lp, q, a, w, [(0, len(row))]))
        assert row == pytest.approx(expected.gradient.tolist(), rel=1e-10, abs=1e-12)
        losses += float(expected.loss.sum())
    assert found["loss"] == pytest.approx(losses, rel=1e-10)


@pytest.mark.parametrize(
    ("body", "cause", "words"),
    [
        ("return None", "Malformed", "it returned None: return the loss"),
        ("return 'low'", "Malformed", "a str, which is no number"),
        ("return float('nan') * np.sum(logprobs[0])", "NotFinite", "the loss is nan"),
        ("return logprobs[0]", "Malformed", "the shape (3,): add it up"),
        ("return np.float64(1.0)", "Malformed", "does not depend on the logprobs"),
        ("return np.sum(np.sqrt(logprobs[1] - data[1].logprobs))", "NotFinite", "0 of data[1]"),
        ("return np.sum(logprobs[0]), {'Bad name': 1.0}", "Malformed", "'Bad name'"),
        ("return np.sum(logprobs[0]), {'sum': 1.0}", "Malformed", "one of the step's own"),
        ("return np.sum(logprobs[0]), {'kl': float('inf')}", "NotFinite", "the metric kl is inf"),
        ("return np.sum(logprobs[0]), {'kl': logprobs[0]}", "Malformed", "the metric kl is no"),
        ("return np.sum(logprobs[0]), {'kl': None}", "Malformed", "the metric kl is no number"),
        ("return data[0].nothing", "Raised", "line 3: AttributeError"),
        ("raise SystemExit('enough')", "Raised", "line 3: SystemExit: enough"),
        ("return loss(data, logprobs)", "Raised", "line 3: RecursionError"),
    ],
)
def test_what_is_no_loss_is_named(body: str, cause: str, words: str) -> None:
    failure = called(HEAD + body)["failure"]
    assert (failure["cause"], words in failure["detail"]) == (cause, True), failure


def test_what_is_masked_has_no_gradient() -> None:
    data = drawn(2)
    masked = data[1].model_copy(update={"mask": [0.0] * len(data[1].mask)})
    found = called(GOOD, data=[data[0], masked])
    assert found["gradient"] == [[1.0] * 3, [0.0] * 4]
    assert found["metrics"] == {"tokens": 3.0}


HOSTILE = {
    "it hangs": ("while True: pass", "Timeout", "no loss within 1 s"),
    "it forks": ("__import__('os').fork()", "Raised", "PermissionError"),
    "it says a gigabyte": (
        "[__import__('os').write(3, b'x' * (1 << 20)) for _ in range(1 << 10)]",
        *("Malformed", "more than an answer can be"),
    ),
    "it says another answer": (
        """__import__('os').write(3, b'{"kind": "Found", "loss": 0, "gradient": []}'); exit_()""",
        *("Malformed", "a gradient of another shape"),
    ),
    "it takes all memory": ("return np.sum(np.ones(1 << 29))", "Memory", "more memory"),
    "it ends its process": ("exit_()", "Died", "ended by itself, with code 7"),
    "it reads files": ("open('/etc/passwd')", "Raised", "PermissionError"),
    "it calls out": ("__import__('socket').socket()", "Raised", "PermissionError"),
}


async def test_a_loss_reaches_nothing_and_is_bounded_in_time_output_and_memory() -> None:
    start = "exit_ = lambda: __import__('os')._exit(7)\n" + HEAD

    async def one(body: str) -> Any:
        seconds = 1 if "while" in body else 60
        return await asked(
            Call(
                source=start + body, file="loss.py", function="loss", seconds=seconds, data=drawn()
            )
        )

    # One after the other: a process that waits for its turn is not what is timed here.
    for name, (body, cause, words) in HOSTILE.items():
        failure = await one(body)
        assert isinstance(failure, Failure), name
        assert (failure.cause, words in failure.detail) == (cause, True), (name, failure)


async def test_a_gigabyte_that_is_printed_goes_nowhere() -> None:
    prints = "[print('x' * (1 << 20)) for _ in range(1 << 10)]"
    source = f"{HEAD}{prints}\n    return np.sum(logprobs[0])"
    found = await asked(
        Call(
            source=source,
            file="loss.py",
            function="loss",
            seconds=60,
            data=drawn(1),
        )
    )
    assert not isinstance(found, Failure)
    assert found.gradient == [[1.0] * 3]


async def test_a_loss_that_fails_ends_the_run_with_function_cause_and_remedy() -> None:
    loss = DeclaredLoss(CustomRef(name="losses"), HEAD + "return None")
    with pytest.raises(UserError) as failed:
        await loss.differentiate(drawn())
    problem = failed.value.problem
    assert problem.reason == "LossFailed"
    assert problem.detail.startswith("loss.customRef: loss of configmap/losses/loss.py: Malformed:")
    assert problem.remedy == "Mend the function in its ConfigMap"


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("def other(data, logprobs): pass", "has no function loss"),
        ("def loss(batch): pass", "has loss(batch), which must be def loss(data, logprobs)"),
        ("def loss(", "is no Python"),
    ],
)
def test_a_module_without_such_a_function_is_refused_before_anything_is_sampled(
    source: str, detail: str
) -> None:
    with pytest.raises(UserError) as refused:
        open_loss(CustomRef(name="losses"), lambda name, key: source)
    assert refused.value.problem.reason == "LossInvalid"
    assert detail in refused.value.problem.detail


def payload(reward: float, group: str, **fields: Any) -> TrajectoryPayload:
    sample = {"prompt_token_ids": [1], "output_token_ids": [2, 3], "output_logprobs": [-1.0, -1.0]}
    given = {"samples": [sample], "reward": reward, "group_id": group, **fields}
    return TrajectoryPayload.model_validate(given)


async def test_a_loss_is_given_the_runs_advantages_and_the_distance_is_told() -> None:
    inputs = [payload(1.0, "0"), payload(0.0, "0"), payload(1.0, "1", advantage=0.25)]
    row = {"logprobs": [-1.0, -2.0], "sampling_logprobs": [-1.0, -1.0], "mask": [1.0, 1.0]}
    data = [
        {"reward": one.reward, "traj_idx": index, **row, "reference_logprobs": [-1.0, -1.0]}
        for index, one in enumerate(inputs)
    ]
    seen = ForwardResult.model_validate({"forward_id": "forward-1", "data": data})
    given: list[LossDatum] = []

    async def differentiate(data: Any) -> Any:
        given.extend(data)
        return [[0.5, 0.5]] * len(data), {"loss/custom": 2.0}

    wanted = CustomGradients(inputs, differentiate, "LeaveOneOut", reference="base")
    assert wanted.forward.reference == "base"
    sent = await wanted.backward(seen)
    assert [datum.advantages for datum in given] == [[1.0, 1.0], [-1.0, -1.0], [0.25, 0.25]]
    assert sent.forward_id == "forward-1"
    # Half of the tokens differ by 1: e - 2, halved.
    assert sent.metrics == {
        "loss/custom": 2.0,
        "policy/reference_kl": pytest.approx((2.718281828 - 2) / 2),
    }


CUSTOM = {"name": "Custom", "customRef": {"name": "losses"}}


async def test_a_declared_run_takes_its_steps_by_the_loss(bench: Bench) -> None:
    bench.modules["losses/loss.py"] = GOOD
    bench.gateway.spec |= {"loss": CUSTOM}
    # The answer to a command is lost on its way: it is sent again, and applied once.
    bench.gateway.fail("backward", "lose")
    await bench.drive()
    assert bench.gateway.kinds() == ["forward", "backward", "optim-step"] * 3
    for body in bench.gateway.bodies("backward"):
        assert {slope for row in body["weights"] for slope in row} == {-1.0}
        assert set(body["metrics"]) == {"loss/custom", "loss/tokens"}


async def test_a_batch_of_several_steps_calls_the_loss_for_each(bench: Bench) -> None:
    bench.modules["losses/loss.py"] = GOOD
    bench.gateway.spec |= {"loss": CUSTOM, "batch": {"minibatches": 2}, "steps": 2}
    await bench.drive()
    assert bench.gateway.kinds() == ["forward", "backward", "optim-step"] * 2
    asked_for = [len(body["inputs"]) for body in bench.gateway.bodies("forward")]
    assert asked_for == [8, 8]
    assert len(bench.gateway.samples) == 4


async def declared(gateway: Passage, url: str, folder: Path, loss: dict[str, Any]) -> Any:
    """The weights after a run with this loss, and the metrics of its steps."""
    gateway.spec |= {"loss": loss}
    await drive(url, folder / "tasks", {"losses/loss.py": BUILT_IN})
    committed = checkpoints(folder / "weights")
    return [load_file(path / "adapter_model.safetensors") for path in committed]


async def test_a_run_by_the_users_formula_learns_what_a_run_by_the_built_in_one_does(
    tmp_path: Path,
) -> None:
    custom = {**CUSTOM, "customRef": {"name": "losses", "function": "ppo"}}
    found = []
    for name, loss in (("built-in", {"name": "ppo"}), ("custom", custom)):
        async with passage_at(tmp_path / name) as (gateway, url):
            found.append(await declared(gateway, url, tmp_path / name, loss))
    built_in, own = found
    assert len(built_in) == len(own) == 3
    for one, other in zip(built_in, own, strict=True):
        assert one.keys() == other.keys()
        for name, weights in one.items():
            torch.testing.assert_close(other[name], weights, rtol=1e-4, atol=1e-6)
    moved = [not torch.equal(built_in[0][name], built_in[2][name]) for name in built_in[0]]
    assert any(moved)


async def test_a_runner_killed_between_forward_and_step_leaves_no_gradient_behind(
    tmp_path: Path,
) -> None:
    modules = {"losses/loss.py": BUILT_IN}
    async with passage_at(tmp_path) as (gateway, url):
        function = {"name": "losses", "function": "importance_sampling"}
        gateway.spec |= {"steps": 1, "loss": {"name": "Custom", "customRef": function}}
        gateway.spec |= {"kl": {"reference": {"base": {}}}}
        for command, pending in (("backward", 0), ("optim-step", 1)):
            gateway.refuse_next = command
            with pytest.raises(RefusedError):
                await drive(url, tmp_path / "tasks", modules)
            async with GatewayClient(url, "default/tiny", "secret") as client:
                assert (await client.state()).pending == pending
        await drive(url, tmp_path / "tasks", modules)
        async with GatewayClient(url, "default/tiny", "secret") as client:
            state = await client.state()
    assert (state.run_step, state.pending) == (1, 0)
    (path,) = checkpoints(tmp_path / "weights")
    step = metrics_of(path)
    assert step["tokens/trained"] == 8
    # The adapter is the base at the first step.
    assert step["policy/reference_kl"] == pytest.approx(0.0, abs=1e-9)
    assert "loss/custom" in step
