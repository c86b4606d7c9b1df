"""Recipes of Tinker's cookbook, unmodified and without a network, on the tiny model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from tests.compat.stage import Fault, Stage
from tests.compat.test_resend import kill_gateway, kill_trainer
from tests.tinker.cookbook import BASE, CHAT_BASE, EXAMPLES, rows_of
from tests.tinker.kitchen import Kitchen, final, opened
from tests.tinker.sdk import NEWEST, started

pytestmark = [pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]
RECIPES = "tinker_cookbook.recipes"
ADAPTER = ("lora_rank=4", "learning_rate=1e-2")
IMPORTANCE = "loss_fn=importance_sampling"
RL_LOOP = (
    *("-m", f"{RECIPES}.rl_loop", f"model_name={BASE}", "batch_size=2", "group_size=4"),
    *("max_steps=3", "save_every=1", "max_tokens=24", *ADAPTER, IMPORTANCE),
)
SL_LOOP = (
    *("-m", f"{RECIPES}.sl_loop", f"model_name={BASE}", "batch_size=2"),
    *("save_every=1", *ADAPTER),
)
SL_STEPS = 6
STAGES = ("sft", "rm", "rl")
# The cookbook's own data of numbers: no question is read from anywhere.
MATH = (
    *("-m", f"{RECIPES}.math_rl.train", f"model_name={BASE}", "env=arithmetic", "max_tokens=16"),
    *("groups_per_batch=2", "group_size=4", "save_every=1", *ADAPTER),
    "behavior_if_log_dir_exists=resume",
)
MATH_STEPS = 4
# Answers of the recipe's first batches, each of three tokens: some are right, and all are as long.
SUMS = tuple(f" {number}" for number in (91, 49, 55, 94))


def given(builder: str, prefix: str = "", **fields: object) -> tuple[str, ...]:
    """A recipe's data, with fields that its own command line fixes."""
    more = {"renderer_name": "role_colon", "model_name_for_tokenizer": BASE} | fields
    name = "dataset_builder"
    return (
        f"{name}={RECIPES}.{builder}",
        *(f"{name}.{prefix}{field}={value}" for field, value in more.items()),
    )


@dataclass(frozen=True)
class Recipe:
    """A recipe, and what must come of it.

    Attributes:
        says: what the sampler answers.
        told: a metric that each of its steps reports.
    """

    name: str
    call: tuple[str, ...]
    says: tuple[str, ...]
    told: str
    steps: int = 2

    def __str__(self) -> str:
        return self.name


GSM8K = given("math_rl.math_env:Gsm8kDatasetBuilder", batch_size=2, group_size=4)
CHATS = given(
    "chat_sl.chat_datasets:NoRobotsBuilder", "common_config.", batch_size=2, max_length=200
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"one": 1, "other": 2}}\n</tool_call><|im_end|>'
RL_BASIC = Recipe(
    "rl_basic",
    ("-m", f"{RECIPES}.rl_basic", f"model_name={BASE}", *GSM8K, "max_tokens=24", *ADAPTER),
    says=(" \\boxed{0}\n\nUser:", " \\boxed{1}\n\nUser:"),
    told="env/all/correct",
)
SL_BASIC = Recipe(
    "sl_basic",
    ("-m", f"{RECIPES}.sl_basic", f"model_name={BASE}", *CHATS, "eval_every=2", *ADAPTER),
    says=(),
    told="train_mean_nll",
    steps=3,
)
GUESS = Recipe(
    "guess a number, ten turns",
    (
        *("-m", f"{RECIPES}.multiplayer_rl.guess_number.train", f"model_name={BASE}"),
        *("renderer_name=role_colon", "group_size=2", "batch_size=2", "max_tokens=24"),
        *("learning_rate=1e-2", "eval_every=0"),
    ),
    says=(" Guess: 7\n\nUser:", " Guess: 1000\n\nUser:", " ?\n\nUser:"),
    told="env/all/turns_per_episode",
)
DPO = Recipe(
    "preference by DPO",
    (
        *("-m", f"{RECIPES}.preference.dpo.train", f"model_name={BASE}", "batch_size=2"),
        *("max_length=200", "learning_rate=1e-2"),
    ),
    says=(),
    told="dpo_loss",
)
SHORTER = Recipe(
    "preference by comparisons",
    (
        *("-m", f"{RECIPES}.preference.shorter.train", f"model_name={BASE}", "batch_size=2"),
        *("renderer_name=role_colon", "group_size=4", "max_tokens=24", "eval_every=0"),
        "learning_rate=1e-2",
    ),
    says=(" yes\n\nUser:", " no, and no\n\nUser:"),
    told="kl_pre_post_v1",
)
DISTILLATION = Recipe(
    "on-policy distillation",
    (
        *("-m", f"{RECIPES}.distillation.on_policy_distillation", f"model_name={BASE}"),
        *(f"teacher_model={BASE}", "dataset=deepmath", "groups_per_batch=2", "group_size=2"),
        *("max_tokens=8", *ADAPTER),
    ),
    says=(" one", " two"),
    told="teacher_kl",
)
TOOLS = Recipe(
    "calls of a tool",
    (
        *(str(EXAMPLES / "tools.py"), f"model_name={CHAT_BASE}", "max_tokens=80", *ADAPTER),
        *("dataset_builder.batch_size=2", "dataset_builder.group_size=4"),
    ),
    says=(CALL, "3<|im_end|>"),
    told="env/all/called",
)
ASYNC = Recipe(
    "math with inline data, asynchronous",
    (*MATH, "loss_fn=ppo", "max_steps_off_policy=1"),
    says=SUMS,
    told="async/staleness_max",
    steps=3,
)
STREAM = Recipe(
    "math with inline data, streamed",
    (
        *(*MATH, IMPORTANCE, "stream_minibatch_config.groups_per_batch=2"),
        "stream_minibatch_config.num_minibatches=2",
    ),
    says=SUMS,
    told="env/all/correct",
    steps=3,
)
# The model that answers has a base of its own, which the recipe names.
TWENTY = Recipe(
    "twenty questions, which another model answers",
    (
        *("-m", f"{RECIPES}.multiplayer_rl.twenty_questions.train", f"model_name={BASE}"),
        *("renderer_name=role_colon", "group_size=2", "batch_size=1", "max_tokens=24"),
        *("learning_rate=1e-2", "eval_every=0"),
    ),
    # The words of the first two batches.
    says=(" Guess: garden\n\nUser:", " Guess: park\n\nUser:", " yes\n\nUser:"),
    told="env/all/turns_per_episode",
)
ARENA = Recipe(
    "text arena, noughts and crosses against itself",
    (
        *("-m", f"{RECIPES}.multiplayer_rl.text_arena.train", f"model_name={BASE}"),
        *("renderer_name=role_colon", "batch_size=4", "num_train_datapoints=8", "max_tokens=16"),
        *("num_test_datapoints=2", "test_opponent=random", "learning_rate=1e-2", "eval_every=0"),
    ),
    says=tuple(f" [{square}]\n" for square in range(9)),
    told="env/all/reward/total",
)
RUBRIC = Recipe(
    "rubric, by which another model grades",
    (
        *("-m", f"{RECIPES}.rubric.train", f"model_name={BASE}", "renderer_name=role_colon"),
        *(f"grader_llm_name={CHAT_BASE}", "grader_renderer_name=qwen3_instruct"),
        *("train_jsonl_path=rubric/train.jsonl", "test_jsonl_path=rubric/test.jsonl"),
        *("groups_per_batch=2", "train_group_size=4", "max_tokens=24", "eval_every=0"),
        *(*ADAPTER, IMPORTANCE),
    ),
    says=tuple(f"<score>{score}</score><|im_end|>" for score in (0, 1)),
    told="env/all/rubric_score",
)
CHAT = Recipe(
    "chat with inline data",
    (
        *("-m", f"{RECIPES}.chat_sl.train", f"model_name={BASE}", "batch_size=2"),
        *("dataset=HuggingFaceH4/no_robots/train.jsonl", "max_length=200", *ADAPTER),
    ),
    says=(),
    told="train_mean_nll",
)
TEACHERS = Recipe(
    "on-policy distillation from two teachers",
    (
        *("-m", f"{RECIPES}.distillation.on_policy_multi_teacher", f"model_name={BASE}"),
        *(f"deepmath_teacher_model={BASE}", f"tulu3_teacher_model={CHAT_BASE}"),
        *("deepmath_groups_per_batch=1", "tulu3_groups_per_batch=1", "group_size=2"),
        *("max_tokens=8", "eval_every=0", *ADAPTER),
    ),
    says=(" one", " two"),
    told="teacher_kl",
)
# Beside these `make test` has rl_loop, sl_loop and rl.train, which the basic ones are.
SAMPLE = (DPO, TOOLS, ASYNC, TWENTY)
OTHERS = (
    *(RL_BASIC, SL_BASIC, GUESS, DISTILLATION, SHORTER),
    *(STREAM, CHAT, TEACHERS, ARENA, RUBRIC),
)
EACH = (*SAMPLE, *(pytest.param(each, marks=pytest.mark.exhaustive) for each in OTHERS))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kitchen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kitchen]:
    async with opened(tmp_path_factory.mktemp("kitchen")) as made:
        yield made


@pytest.mark.parametrize("recipe", EACH, ids=str)
async def test_a_recipe_runs_to_its_end_and_each_of_its_steps_is_a_checkpoint(
    kitchen: Kitchen, tmp_path: Path, recipe: Recipe
) -> None:
    if recipe.says:
        kitchen.say(*recipe.says)
    log = tmp_path / "log"
    await kitchen.cook(log, *recipe.call, f"max_steps={recipe.steps}")
    told = [row[recipe.told] for row in rows_of(log / "metrics.jsonl") if recipe.told in row]
    assert len(told) == recipe.steps
    steps = [body["spec"]["step"] for body in kitchen.lineage(final(log))]
    assert steps == list(range(1, recipe.steps + 1))


@pytest.mark.exhaustive
async def test_prompt_distillation_trains_on_what_it_had_labelled(
    kitchen: Kitchen, tmp_path: Path
) -> None:
    # The recipe reads its sentences where a clone of the cookbook has them.
    sentences = kitchen.home / "tinker_cookbook" / "example_data" / "multilingual.txt"
    sentences.parent.mkdir(parents=True)
    sentences.write_text("Good morning, all of you\nGuten Morgen, ihr alle\n" * 2)
    kitchen.say("Final Answer: en<|im_end|>", "Final Answer: de<|im_end|>")
    labelled, log = tmp_path / "labelled.jsonl", tmp_path / "log"
    recipe = f"{RECIPES}.prompt_distillation"
    await kitchen.run("-m", f"{recipe}.create_data", f"output_file={labelled}")
    answers = [row["messages"][1]["content"] for row in rows_of(labelled)]
    assert len(answers) == 4
    assert set(answers) <= {"en", "de"}
    model = (f"model_name={BASE}", f"file_path={labelled}", "batch_size=2", "num_epochs=1")
    await kitchen.cook(log, "-m", f"{recipe}.train", *model, *ADAPTER)
    assert [body["spec"]["step"] for body in kitchen.lineage(final(log))] == [1, 2]


@pytest.mark.exhaustive
async def test_rlhf_tunes_then_trains_a_preference_model_then_the_policy_from_what_was_tuned(
    kitchen: Kitchen, tmp_path: Path
) -> None:
    kitchen.say(" A\n\nUser:", " B\n\nUser:")
    await kitchen.run(
        *("-m", f"{RECIPES}.preference.rlhf.rlhf_pipeline", f"base_model={BASE}"),
        *("short_name=tiny", "lora_rank=4", "max_length=200", "batch_size=2", "max_steps=1"),
        *("rl_group_size=2", "rl_max_tokens=8", "eval_every=0"),
    )
    logs = {stage: kitchen.home / "tinker-runs" / "rlhf-tiny" / stage for stage in STAGES}
    tuned, preferred, policy = (kitchen.lineage(final(log)) for log in logs.values())
    assert [len(line) for line in (tuned, preferred, policy)] == [1, 1, 2]
    assert policy[0]["metadata"]["name"] == tuned[0]["metadata"]["name"]
    metrics = rows_of(logs["rl"] / "metrics.jsonl")
    assert len([row for row in metrics if "env/all/win_minus_loss" in row]) == 1


async def test_rl_loop_samples_trains_and_saves(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.say(*(f" \\boxed{{{number}}}" for number in range(3)))
    asked, log = len(kitchen.stage.sampled), tmp_path / "log"
    await kitchen.cook(log, *RL_LOOP)
    steps = rows_of(log / "metrics.jsonl")
    assert [row["progress/batch"] for row in steps] == [0, 1, 2]
    # The scripted sampler is right one time in three, whatever it was trained on.
    assert 0 < sum(row["reward/total"] for row in steps) < len(steps)
    saved = rows_of(log / "checkpoints.jsonl")
    assert [row["name"] for row in saved] == ["000001", "000002", "final"]
    assert [row for row in saved if "sampler_path" in row] == [saved[-1]]
    one, other = (kitchen.weights(saved[at]["state_path"]) for at in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    requests = [body for body in kitchen.stage.sampled[asked:] if body["n"] == 4]
    assert len(requests) == 6, "each question is one request of four answers"


async def test_sl_loop_learns_and_ends_the_same_after_everything_was_killed(
    kitchen: Kitchen, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    await kitchen.cook(whole, *SL_LOOP)
    losses = [row["train_mean_nll"] for row in rows_of(whole / "metrics.jsonl")]
    assert len(losses) == SL_STEPS
    assert losses[-1] < losses[0]

    stage, before = kitchen.stage, _trained(kitchen.stage)
    async with started(NEWEST, kitchen.variables, *SL_LOOP, f"log_path={broken}") as client:
        await kitchen.saved(client, broken, 1)
        await stage.stop_gateway()
        await stage.start_gateway()
        (model,) = _trained(stage) - before
        await stage.restart_trainer(model)
        await kitchen.saved(client, broken, 3)
        client.kill()
    assert len(rows_of(broken / "metrics.jsonl")) < SL_STEPS
    said = await kitchen.cook(broken, *SL_LOOP)
    assert "Resuming from batch" in said
    one, other = (kitchen.weights(final(log)) for log in (whole, broken))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


async def test_a_run_of_rl_train_applies_each_step_once_whoever_was_killed(
    kitchen: Kitchen, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call = (*MATH, IMPORTANCE, f"max_steps={MATH_STEPS}")
    kitchen.say(*SUMS)
    await kitchen.cook(whole, *call)
    assert any(row.get("optimizer/gradient_norm") for row in rows_of(whole / "metrics.jsonl"))

    stage = kitchen.stage
    # A forward_backward and an optim_step for each step.
    stage.faults = [
        *(None, Fault("trainer killed, its answer lost", kill_trainer)),
        *(Fault("gateway killed, the answer lost", kill_gateway), None),
        Fault("trainer killed before it had the command", kill_trainer, before=True),
    ]
    async with started(NEWEST, kitchen.variables, *call, f"log_path={broken}") as client:
        await kitchen.saved(client, broken, 3)
        client.kill()
    assert not stage.faults
    assert len(rows_of(broken / "metrics.jsonl")) < MATH_STEPS
    await kitchen.cook(broken, *call)
    steps, again = (_steps(kitchen, log) for log in (whole, broken))
    assert [step for step, _ in steps] == list(range(1, MATH_STEPS + 1))
    assert again == steps, "each step has the tokens of its own batch, once"


def _steps(kitchen: Kitchen, log: Path) -> list[tuple[int, str]]:
    """The steps that a run has applied, each with the tokens it was trained on."""
    return [
        (body["spec"]["step"], metric["value"])
        for body in kitchen.lineage(final(log))
        for metric in body["status"]["metrics"]
        if metric["name"] == "tokens/trained"
    ]


def _trained(stage: Stage) -> set[str]:
    return {trainer.model for trainer in stage.trainers.values()}
