"""TRL's GRPOTrainer as one side of the comparison, in TRL's environment.

    $(bench/trainer/trl_environment.sh) -m bench.loop.trl_side SETTING FOLDER

Waits for a line with a number of steps, takes them, saves the adapter as ``FOLDER/<step>`` and
answers with a line of JSON; ends with its input. What differs from TRL's defaults is what the other
side does as well (no gradient checkpointing, float32, a constant learning rate), and its loss:
Dr. GRPO's without a standard deviation, one update a batch, which is the other side's up to a
factor that Adam takes out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from bench.loop.setting import Setting
from bench.loop.sums import trained
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.extras.profiling import ProfilingContext

# Where TRL's own marks of time belong.
PHASES = {"transformers.generate": "sampling", "_calculate_rewards": "reward"}


class Pieces(TrainerCallback):  # type: ignore[misc]
    """Stops after as many steps as it was told, and tells what they took."""

    def __init__(self, folder: Path, spent: Counter[str]) -> None:
        self._folder = folder
        self._spent = spent
        self._until = 0
        self._began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Waits for its turn."""
        if state.global_step >= self._until:
            self._turn(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answers when the last step of the turn is taken, then waits for the next one."""
        if state.global_step >= self._until:
            wall, cpu = (now - then for now, then in zip(_clocks(), self._began, strict=True))
            model = kwargs["model"]
            model.save_pretrained(self._folder / str(state.global_step))
            rest = {"training": wall - sum(self._spent.values())}
            print(json.dumps({"wall": wall, "cpu": cpu, "phases": {**self._spent, **rest}}))
            self._turn(state.global_step)

    def _turn(self, step: int) -> None:
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            # Its input has ended: nobody waits for an orderly end.
            os._exit(0)
        self._until = step + int(line)
        self._spent.clear()
        self._began = _clocks()


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def main() -> None:
    """One side."""
    setting, folder = Setting.read(sys.argv[1]), Path(sys.argv[2])
    answers = os.dup(1)
    # TRL prints to stdout, which is for answers alone.
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers, "w")
    spent: Counter[str] = Counter()

    def keep(self: Any, duration: float) -> None:
        mark = self.name.partition(".")[2]
        if mark in PHASES:
            spent[PHASES[mark]] += duration

    ProfilingContext._log_metrics = keep
    trainer = trainer_of(setting, folder)
    trainer.add_callback(Pieces(folder, spent))
    trainer.train()


def trainer_of(setting: Setting, folder: Path) -> Any:
    """A GRPOTrainer that does what ``Setting`` says."""
    tasks = trained(setting.seed)
    by_question = {task.prompt[0]["content"]: task for task in tasks}

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [by_question[p[0]["content"]].reward(c[0]["content"]) for p, c in pairs]

    options = GRPOConfig(
        output_dir=str(folder),
        seed=setting.seed,
        max_steps=setting.steps,
        per_device_train_batch_size=setting.size,
        gradient_accumulation_steps=setting.groups,
        num_generations=setting.size,
        max_completion_length=setting.max_tokens,
        learning_rate=setting.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=0.0,
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": torch.float32},
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=setting.rank,
        lora_alpha=setting.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    return GRPOTrainer(
        model=setting.model,
        reward_funcs=reward,
        args=options,
        train_dataset=Dataset.from_list([{"prompt": task.prompt} for task in tasks]),
        processing_class=AutoTokenizer.from_pretrained(setting.model, padding_side="left"),
        peft_config=adapter,
    )


if __name__ == "__main__":
    main()
