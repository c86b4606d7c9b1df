"""HUD's own agent and client, unmodified, against ``espalier dev``: real gateway, trainer and vLLM.

The model is random and tiny; cross entropy first teaches it to write its calls, so that it samples
freely: a grammar would force the calls and change the log-probs. What is played is in
examples/hud, what HUD's client does with it in tests/compat/games.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import pytest_asyncio
from dev.ports import free_port
from tests.compat.clients import EACH_VERSION, NEWEST, OUT, ROOT, drive, environment, script
from tests.local.test_dev import SAME, dev
from tests.sampler import qwen3

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]

MANIFESTS = """
apiVersion: espalier.dev/v1alpha1
kind: TrainableModel
metadata: {name: player}
spec:
  source: {base: {image: player}}
  adapter: {rank: 8, alpha: 16}
  trainer: {dtype: float32}
  rollout: {replicas: 1, maxModelTokens: 4096}
  storage: {persistentVolumeClaim: {claimName: weights}}
---
apiVersion: espalier.dev/v1alpha1
kind: CheckpointHead
metadata: {name: player}
spec: {modelRef: {name: player}, mode: Track}
---
apiVersion: espalier.dev/v1alpha1
kind: TrainingRun
metadata: {name: player}
spec:
  modelRef: {name: player}
  driver: Client
  steps: 1000
"""
SCRIPT = Path(__file__).parents[1] / "compat" / "games.py"
# Phrases of a call that are a token each: what a turn says is ten tokens then.
PHRASES = (
    "\nok\n",
    "\n\n",
    '\n{"name": "move", "arguments": {"direction": "',
    '\n{"name": "drop", "arguments": {"column": ',
    '"}}\n',
    "}}\n",
    "up",
    "down",
    "left",
    "right",
)
# Most turns of a game, and steps: later turns are taught where the model plays on to reach them.
LESSONS = ((1, 8), (4, 6), (12, 6), (21, 6))
GROUP, TURNS, GAMES, CHUNK, CHUNKS = 4, 6, 6, 16, 2


@dataclass(frozen=True)
class Player:
    """The model that HUD's client plays with, and what its user set."""

    variables: dict[str, str]
    taught: str = ""

    async def drive(self, version: str, scenario: str, **given: Any) -> list[Any]:
        return await drive(version, scenario, self.variables, path=SCRIPT, model="player", **given)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def player(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Player]:
    """One system for all of them, with a model that has learnt to call both games' tools."""
    model = qwen3.make_model(tmp_path_factory.mktemp("model"), qwen3.TEACHABLE, PHRASES * 10)
    manifests = tmp_path_factory.mktemp("manifests")
    (manifests / "player.yaml").write_text(MANIFESTS)
    async with dev(manifests, model, free_port(), image="player") as running:
        found = await running.says(r"ESPALIER_GATEWAY_URL=(\S+) ESPALIER_TOKEN=(\S+)")
        await running.says("TrainingRun player: AwaitingClient")
        variables = environment(found[1], found[2], tmp_path_factory.mktemp("home"))
        *losses, (_, checkpoint) = await Player(variables).drive(NEWEST, "taught", rounds=LESSONS)
        # In nats a call: the choice of one of the four that were shown is 1.39 of them.
        assert losses[-1][1][-1] < 2.5, losses
        yield Player(variables, checkpoint)


def aligned(data: list[Any]) -> bool:
    """Whether the trainer has the log-probs that the model was sampled with."""
    return all(d["logprobs"] == pytest.approx(d["sampling_logprobs"], abs=SAME) for d in data)


def moved(data: list[Any], other: list[Any]) -> float:
    """The largest change of a log-prob."""
    pairs = zip(data, other, strict=True)
    return max(
        abs(a - b) for d, e in pairs for a, b in zip(d["logprobs"], e["logprobs"], strict=True)
    )


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_a_game_played_by_tool_calls_is_trained_on_by_its_exact_tokens(
    player: Player, version: str
) -> None:
    told = dict(
        await player.drive(version, "moves_trained", start=player.taught, group=GROUP, turns=TURNS)
    )
    assert [status for status, *_ in told["runs"]] == ["completed"] * 2 * GROUP
    # Every call has reached the environment, which answered with its board.
    for (_, _, moves), calls in zip(told["runs"], told["calls"], strict=True):
        legal = [c for c in calls if c[0] == "move" and "moved" not in c[2] and c[1]]
        assert [call[1]["direction"] for call in legal] == moves
    assert max(len(turns) for turns in told["tokens"]) > 2
    # A later prompt begins with the very tokens of the turn before it; what follows is the board.
    for turns in told["tokens"]:
        for (prompt, output), (later, _) in pairwise(turns):
            assert later[: len(prompt + output)] == prompt + output
            assert len(later) > len(prompt + output)
    # Each turn is a datum of its output alone, at the log-probs that vLLM sampled it with.
    outputs = [output for turns in told["tokens"] for _, output in turns]
    assert [d["mask"] for d in told["before"]] == [[1.0] * len(output) for output in outputs]
    assert aligned(told["before"])
    made = told["head"]
    assert made["id"] == told["step"]
    assert (made["num_traces"], made["num_datums"]) == (2 * GROUP, len(outputs))
    assert made["num_tokens"] == sum(map(len, outputs))
    mean = fmean(reward for _, reward, _ in told["runs"])
    assert made["sampled"] == pytest.approx(mean, abs=1e-5)
    # What the games earned is no figure of the checkpoint that was made from them.
    assert made["reward"] is None
    # The step changed the model, and the very next games were sampled from what it made.
    assert moved(told["before"], told["after"]) > 20 * SAME
    assert aligned(told["again"])


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_both_sides_of_a_game_are_trained_one_as_a_run_and_one_inline(
    player: Player, version: str
) -> None:
    told = dict(await player.drive(version, "self_play", start=player.taught, games=GAMES))
    turns = told["turns"]
    assert turns
    assert max(own for own, _, _ in turns) > 2
    # Pairs in their places: the run and its turns, then the other side with the rest of the reward.
    expected = []
    for number, (own, others, left) in enumerate(turns):
        expected += [(2 * number, number, 1.0 - left)] * own
        expected += [(2 * number + 1, number, left)] * others
    data = told["before"]
    assert [(d["traj_idx"], d["group_idx"], d["reward"]) for d in data] == expected
    assert aligned(data)
    made = told["head"]
    assert made["id"] == told["step"]
    assert (made["num_traces"], made["num_datums"]) == (2 * len(turns), len(data))
    assert made["loss_fn"] == "ppo"


@pytest.mark.parametrize("version", EACH_VERSION)
async def test_chunks_of_sixteen_runs_before_a_step_are_one_batch(
    player: Player, version: str
) -> None:
    told = await player.drive(version, "chunks", start=player.taught, size=CHUNK, count=CHUNKS)
    (_, several), (_, after_several), (_, once), (_, after_one) = told
    assert several["num_traces"] == CHUNK * CHUNKS
    assert several["prev_model_checkpoint_id"] == once["prev_model_checkpoint_id"]
    assert {**several, "id": ""} == {**once, "id": ""}
    assert several["prev_model_checkpoint_id"] == player.taught
    assert several["id"] != once["id"]
    assert moved(after_several, after_one) < SAME
    assert not aligned(after_several)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("game_2048", ["--steps=2", "--group=4", "--moves=6"]),
        pytest.param(
            "connect_four",
            ["--steps=1", "--games-a-step=4"],
            marks=pytest.mark.exhaustive,
        ),
    ],
)
async def test_the_scripts_of_the_example_train(
    player: Player, name: str, options: list[str]
) -> None:
    path = ROOT / "examples" / "hud" / f"{name}.py"
    rate = "--learning-rate=1e-3"
    said = await script(NEWEST, path, player.variables, "player", *options, rate)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"hud-{name}.txt").write_text(said)
    steps = [line for line in said.splitlines() if line.startswith("player-")]
    assert len(steps) == int(options[0].rpartition("=")[2])
