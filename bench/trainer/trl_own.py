"""TRL's own GRPOTrainer on the batch and the weights of the benchmark, in TRL's environment.

    $(bench/trainer/trl_environment.sh) -m bench.trainer.trl_own

compares value and gradient of four of its losses with this trainer's sums: what TRL divides by
goes into the advantages. Without Triton, as on a CPU, TRL's head scores every position and folds
its tiles in plain torch, so its CPU-seconds say little about TRL on a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from bench.trainer.baselines import ADAPTER, IGNORED, padded
from bench.trainer.workload import WORKLOADS, Workload, batch, causal_lm
from bench.trainer.workload import policy as policy_of
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.packing import lay_out
from espalier.trainer.compute.gradients import add_loss
from espalier.trainer.policy.lora import Lora
from espalier.trainer.policy.policy import Policy

UNCLIPPED = 1e9
CLIPS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
CISPO_CLIPS = {"clip_low_threshold": 0.0, "clip_high_threshold": 1.2}


def trainer_of(work: Workload, policy: Policy, size: int) -> Any:
    """A GRPOTrainer for micro-batches of ``size`` sequences that shares the policy's adapter."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")),
        pad_token="a",
        eos_token="b",
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=work.rank,
        lora_alpha=2 * work.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    options = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=size,
        num_generations=size,
        max_completion_length=work.longest,
        gradient_checkpointing=False,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    made = GRPOTrainer(
        model=causal_lm(work, policy._head.weight.dtype, policy.device),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=options,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * size),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    made.current_gradient_accumulation_steps = 1
    theirs = dict(made.model.named_parameters())
    assert isinstance(policy.trained, Lora)
    for name, parameter in policy.trained.peft.named_parameters():
        if parameter.requires_grad:
            theirs[name].data = parameter.data
    made.model.train()
    return made


def inputs(datums: Sequence[Datum], device: torch.device, items: int) -> dict[str, Tensor]:
    """A micro-batch as GRPOTrainer prepares it; ``items`` is its num_items_in_batch."""
    rows = padded(datums, device)
    before = max(len(datum.prompt) for datum in datums)
    completion = rows["labels"][:, before:] != IGNORED
    return {
        "prompt_ids": rows["ids"][:, :before],
        "prompt_mask": rows["mask"][:, :before],
        "completion_ids": rows["ids"][:, before:],
        "completion_mask": completion.long(),
        "advantages": torch.tensor([datum.advantage for datum in datums], device=device),
        "old_per_token_logps": rows["sampling"][:, before:].float(),
        "num_items_in_batch": torch.tensor(items, device=device),
    }


def own_variant(
    work: Workload, policy: Policy, data: Sequence[Datum], micro_batch: int
) -> tuple[Any, Callable[[], None]]:
    """Its dapo loss without clipping over one item: the sum of importance_sampling."""
    trainer = trainer_of(work, policy, micro_batch)
    trainer.loss_type = "dapo"
    trainer.epsilon_low = trainer.epsilon_high = UNCLIPPED

    def step() -> None:
        for start in range(0, len(data), micro_batch):
            part = inputs(data[start : start + micro_batch], policy.device, 1)
            trainer.compute_loss(trainer.model, part).backward()

    return trainer, step


def _ours(loss: str, data: Sequence[Datum], longest: int) -> tuple[str, dict[str, float], Any]:
    """Name and configuration of our loss, and the data with TRL's normalisation folded in."""
    tokens = sum(len(datum.output) for datum in data)
    divisor = {
        "dapo": lambda _: tokens,
        "cispo": lambda _: tokens,
        "dr_grpo": lambda _: len(data) * longest,
        "grpo": lambda datum: len(data) * len(datum.output),
    }[loss]
    scaled = [replace(datum, advantage=datum.advantage / divisor(datum)) for datum in data]
    if loss == "cispo":
        return "cispo", CISPO_CLIPS, scaled
    return "ppo", CLIPS, scaled


def main() -> None:
    torch.set_num_threads(1)
    work = WORKLOADS["tiny"]
    policy, data = policy_of(work, torch.float32, torch.device("cpu")), batch(work)
    trainer = trainer_of(work, policy, len(data))
    tokens = sum(len(datum.output) for datum in data)
    print("| TRL's loss | ours | TRL's value | ours | gradient differs |")
    print("|---|---|---|---|---|")
    for loss in ("dapo", "dr_grpo", "grpo", "cispo"):
        trainer.loss_type = loss
        trainer.epsilon_low = 0.2
        trainer.epsilon_high = CISPO_CLIPS["clip_high_threshold"] if loss == "cispo" else 0.2
        trainer.model.zero_grad()
        value = trainer.compute_loss(trainer.model, inputs(data, policy.device, tokens))
        value.backward()
        theirs = {
            name.replace(f".{ADAPTER}.", "."): parameter.grad
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        }
        name, config, scaled = _ours(loss, data, work.longest)
        policy.drop_gradients()
        rows = lay_out(scaled, policy.row_tokens)
        tally = add_loss(policy, rows, loss_spec(name, config), None)
        worst = max(
            float((parameter.grad - theirs[key]).abs().max() / theirs[key].abs().max())
            for key, parameter in policy.parameters.items()
        )
        print(f"| {loss} | {name} | {float(value):.7f} | {tally.loss:.7f} | {worst:.1e} |")


if __name__ == "__main__":
    main()
