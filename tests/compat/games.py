"""Runs inside HUD's environment: its agent plays the cookbooks' games on a real model.

``python games.py SCENARIO '{"model": ...}'``; prints [name, result] lines. Nothing of Espalier can
be imported here.
"""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "hud"))

import connect_four as fours
import game_2048
from hud import TrainingClient
from hud.agents.types import ToolStep
from hud.eval import Job
from hud.settings import settings
from lessons import call, samples, teach, tokens_of
from openai import AsyncOpenAI

DIRECTIONS = ("up", "down", "left", "right")
# Prompts of a game in a lesson.
LESSONS = 5
# Of steps on rewards; lessons have a larger one.
RATE = 1e-3


async def moves(model):
    """Tokens of a call for each direction."""
    gateway = AsyncOpenAI(api_key=settings.api_key, base_url=settings.hud_gateway_url)
    texts = [call("move", direction=direction) for direction in DIRECTIONS]
    return [await tokens_of(gateway, model, text) for text in texts]


async def drops(model):
    """Tokens of a call for each column."""
    gateway = AsyncOpenAI(api_key=settings.api_key, base_url=settings.hud_gateway_url)
    return [await tokens_of(gateway, model, call("drop", column=column)) for column in range(7)]


async def prompts(model, seeds, turns):
    """Of some turns of both kinds of games, as HUD's agent had them, from the first to the last."""
    alone = await Job.start("lessons", group=1)
    slid = await game_2048.games(model, alone, seeds, turns)
    dropped = await fours.games(model, alone, seeds, turns)
    slides = [sample.prompt_token_ids for run in slid for sample in samples(run)]
    columns = [sample.prompt_token_ids for run in dropped for sample in samples(run)]
    columns += [turn["prompt_token_ids"] for run in dropped for turn in run.grade.info["other"]]
    spread = [number / (LESSONS - 1) for number in range(LESSONS)]
    return [
        [sorted(found, key=len)[round(place * (len(found) - 1))] for place in spread]
        for found in (slides, columns)
    ]


async def taught(model, rounds):
    """Lessons in the turns that games reach: the first alone, until the model can call a tool.

    rounds: most turns of a game, and steps of the optimizer.
    """
    trainer = TrainingClient(model)
    ways, columns = await moves(model), await drops(model)
    for first, (turns, steps) in enumerate(rounds):
        slid, dropped = await prompts(model, range(2 * first, 2 * first + 2), turns)
        lessons = [(prompt, ways) for prompt in slid]
        for number, prompt in enumerate(dropped):
            shown = [columns[(3 * number + other) % len(columns)] for other in range(len(ways))]
            lessons.append((prompt, shown))
        yield "losses", await teach(trainer, lessons, steps)
    yield "checkpoint", (await trainer.head()).id


def shown(data):
    """Of each datum: trajectory, group, reward; log-probs now and as sampled; what is trained."""
    fields = ("traj_idx", "group_idx", "reward", "logprobs", "sampling_logprobs", "mask")
    return [{name: getattr(datum, name) for name in fields} for datum in data]


def tokens(run):
    """Prompt and output of each turn."""
    return [[sample.prompt_token_ids, sample.output_token_ids] for sample in samples(run)]


def called(run):
    """Name and arguments of each call that the environment answered, and its answer."""
    steps = run.trace.collect(lambda step: step if isinstance(step, ToolStep) else None)
    return [
        [step.call.name, step.call.arguments, "".join(part.text for part in step.result.content)]
        for step in steps
    ]


async def at(model, checkpoint):
    """A trainer whose next step comes after this checkpoint, which is what is sampled now."""
    trainer = TrainingClient(model)
    if (await trainer.head()).id != checkpoint:
        await trainer.set_head(checkpoint)
    return trainer


async def head(trainer):
    """What the head serves, and what its step was made of."""
    found = await trainer.head()
    names = ("id", "prev_model_checkpoint_id", "loss_fn", "num_traces", "num_datums", "num_tokens")
    rewards = {"reward": found.mean_reward, "sampled": found.metrics.get("rollout/reward/mean")}
    return {name: getattr(found, name) for name in names} | rewards


async def moves_trained(model, start, group, turns):
    """Games of several turns, trained on as they are; then a turn of games by what came of it."""
    trainer = await at(model, start)
    job = await Job.start("2048", group=group)
    runs = await game_2048.games(model, job, range(2), turns)
    yield "runs", [[run.trace.status, run.reward, run.grade.info["moved"]] for run in runs]
    yield "tokens", [tokens(run) for run in runs]
    yield "calls", [called(run) for run in runs]
    yield "before", shown((await trainer.forward(runs, group_size=group)).data)
    step = await trainer.step(runs, group_size=group, learning_rate=RATE)
    yield "step", step.checkpoint_id
    yield "head", await head(trainer)
    yield "after", shown((await trainer.forward(runs, group_size=group)).data)
    again = await game_2048.games(model, job, range(2), 1)
    yield "again", shown((await trainer.forward(again)).data)


async def self_play(model, start, games):
    """Both sides of some games: the agent's as a run, the other inline."""
    trainer = await at(model, start)
    job = await Job.start("connect-four", group=1)
    runs = await fours.games(model, job, range(games))
    pairs = [fours.sides(run) for run in runs]
    both = [side for pair in pairs for side in pair]
    yield "games", [[run.reward, run.grade.info["board"]] for run in runs]
    yield (
        "turns",
        [
            [len(samples(run)), len(other.samples), other.reward]
            for run, other in filter(None, pairs)
        ],
    )
    yield "before", shown((await trainer.forward(both, group_size=2)).data)
    step = await trainer.step(both, loss_fn="ppo", group_size=2, learning_rate=RATE)
    yield "step", step.checkpoint_id
    yield "head", await head(trainer)


async def chunks(model, start, size, count):
    """The same games in several calls of so many runs before a step, and in one."""
    trainer = await at(model, start)
    job = await Job.start("2048", group=8)
    runs = await game_2048.games(model, job, range(size * count // 8), 2)
    for calls in (count, 1):
        trainer = await at(model, start)
        part = len(runs) // calls
        for first in range(0, len(runs), part):
            await trainer.forward_backward(runs[first : first + part], group_size=8)
        await trainer.optim_step(learning_rate=RATE)
        yield "head", await head(trainer)
        yield "after", shown((await trainer.forward(runs[:2])).data)


async def main():
    scenario = globals()[sys.argv[1]]
    async for name, result in scenario(**json.loads(sys.argv[2])):
        print(json.dumps([name, result]), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
