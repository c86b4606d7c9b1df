"""What recipes of Tinker's cookbook read, as a user without a network lays it out.

The recipes run unmodified. What they would download they find in directories of the same names
where they are started: the datasets, and the base with its tokenizer.
"""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.sampler.tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples" / "tinker"
# A base whose renderer the cookbook knows by its name, and which is plain text: role_colon.
BASE = "Qwen/Qwen3-8B-Base"
# One that it takes for a chat model with tools: qwen3_instruct.
CHAT_BASE = "Qwen/Qwen3-4B-Instruct-2507"
# Those that recipes name themselves: who answers in twenty questions, and who labels for prompt
# distillation.
NAMED_BASES = ("Qwen/Qwen3.5-9B", "Qwen/Qwen3.6-35B-A3B")
BASES = (BASE, CHAT_BASE, *NAMED_BASES)
MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
QUESTIONS = {"train": 12, "test": 2}


def lay_out(home: Path) -> Path:
    """Writes all of it, the data by the example's script; the directory of the base."""
    base = _with_marks(make_model(home / BASE))
    for name in BASES[1:]:
        (home / name).symlink_to(base)
    write = runpy.run_path(str(EXAMPLES / "data.py"))["write"]
    for split, count in QUESTIONS.items():
        # Sums of 0, 1 and 2.
        write(home, split, count, largest=1)
    return base


def _with_marks(base: Path) -> Path:
    """The same model, with the marks of turns that renderers of chat models write, and longer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # This tokenizer makes a token of nearly each letter; prompt distillation's text has 4,700.
    model.config.max_position_embeddings = 8192
    tokenizer.save_pretrained(base)
    model.save_pretrained(base)
    return base


def saying(base: Path, *texts: str) -> Callable[[random.Random], list[int]]:
    """A writer of one of some texts, by chance."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens: list[list[int]] = [tokenizer.encode(text) for text in texts]
    return lambda chance: chance.choice(tokens)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without a line that is not whole yet."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
