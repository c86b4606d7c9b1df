"""A tiny random Llama, trajectories for it, and an engine on a volume: no mock anywhere."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from dev.tiny_model import tokenizer
from tests.trainer.importing import import_directory
from transformers import LlamaConfig, LlamaForCausalLM

from espalier.api.model.adapter import Adapter
from espalier.api.wire.base import Wire
from espalier.api.wire.gradients import ForwardBackwardRequest, ForwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import Assignment
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.batch.packing import Rows, lay_out
from espalier.trainer.batch.tally import Tally
from espalier.trainer.compute import gradients
from espalier.trainer.compute.adamw import Moments
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.commands import Answer, Command, Sent
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.policy.policy import Policy, load_policy
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog, Key, Kind

VOCABULARY = 256
ADAPTER = Adapter(rank=4, alpha=8, seed=7)
FULL = Adapter(type="Full")
MODEL = "arith"


@dataclass(frozen=True)
class Volume:
    """A volume and the digest of the base on it."""

    path: Path
    base: str


def causal_lm(
    seed: int = 0, *, tied: bool = True, vocabulary: int = VOCABULARY
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=vocabulary,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def write_model(directory: Path, vocabulary: int = VOCABULARY) -> None:
    """The tiny model with a tokenizer of fewer words than it has."""
    causal_lm(vocabulary=vocabulary).save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def write_base(volume: Path, directory: Path) -> str:
    """Imports the tiny model and returns the digest of the base."""
    write_model(directory)
    return import_directory(CheckpointStore(volume, "importer"), directory).digest


def policy(volume: Path, base: str, adapter: Adapter = ADAPTER, ranks: int = 1) -> Policy:
    path = CheckpointStore(volume, MODEL).open("base", base).path
    return load_policy(path, adapter, "float32", ranks)


def engine(volume: Path, base: str, loaded: Policy | None = None, model: str = MODEL) -> Engine:
    store = CheckpointStore(volume, model)
    log = CommandLog(store.model_directory(model), lock_seconds=1.0)
    return Engine(
        TrainingState(
            model=model,
            base=base,
            compute=LocalCompute(loaded or policy(volume, base)),
            store=store,
            log=log,
        )
    )


def moments(target: Engine) -> Moments:
    """Adam's state."""
    assert isinstance(target.state.compute, LocalCompute)
    return target.state.compute.moments


def assignment(term: int = 1, **changes: object) -> Assignment:
    values = {"term": term, "branch": "main", "run": "default/run"} | changes
    return Assignment.model_validate(values)


def trajectory(generator: random.Random, prompt: list[int], reward: float) -> TrajectoryPayload:
    output = [generator.randrange(VOCABULARY) for _ in range(generator.randint(1, 6))]
    return TrajectoryPayload(
        samples=[
            TrajectorySample(
                prompt_token_ids=prompt,
                output_token_ids=output,
                output_logprobs=[-generator.uniform(3.0, 6.0) for _ in output],
            )
        ],
        reward=reward,
    )


def trajectories(seed: int = 0, groups: int = 2, size: int = 3) -> list[TrajectoryPayload]:
    generator = random.Random(seed)
    result = []
    for _ in range(groups):
        prompt = [generator.randrange(VOCABULARY) for _ in range(generator.randint(4, 9))]
        result += [trajectory(generator, prompt, generator.random()) for _ in range(size)]
    return result


def forward_backward(seed: int = 0, **changes: object) -> ForwardBackwardRequest:
    values = {"inputs": trajectories(seed), "group_size": 3} | changes
    return ForwardBackwardRequest.model_validate(values)


def forward(seed: int = 0, **changes: object) -> ForwardRequest:
    values = {"inputs": trajectories(seed), "group_size": 3} | changes
    return ForwardRequest.model_validate(values)


def optim_step(**changes: object) -> OptimStepRequest:
    values = {"learning_rate": 1e-2, "metrics": {"rollout/reward/mean": 0.5}} | changes
    return OptimStepRequest.model_validate(values)


def laid(policy: Policy, data: Sequence[Datum], spec: LossSpec | None = None) -> Rows:
    """Rows as long as the policy takes them."""
    return lay_out(data, policy.row_tokens, gradients.without_gradient(data, spec))


def at(temperature: float, data: Sequence[Datum]) -> list[Datum]:
    return [dataclasses.replace(datum, temperature=temperature) for datum in data]


def score(policy: Policy, data: Sequence[Datum], temperature: float) -> list[list[float]]:
    return gradients.score(policy, laid(policy, at(temperature, data)))


def add_loss(
    policy: Policy,
    data: Sequence[Datum],
    spec: LossSpec,
    temperature: float,
    group_size: int | None,
) -> Tally:
    rows = laid(policy, at(temperature, data), spec)
    return gradients.add_loss(policy, rows, spec, group_size)


def send(
    target: Engine, kind: Kind, request: Wire, key: tuple[str, int], term: int | None = None
) -> Answer:
    return target.execute(Command(Key(*key), Sent(kind, request, term)))
