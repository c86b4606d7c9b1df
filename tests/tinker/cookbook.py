"""What recipes of Tinker's cookbook read, as a user without a network lays it out.

The recipes run unmodified. What they would download they find in directories of the same names
where they are started: the datasets, and the base with its tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.sampler.tiny import make_model
from transformers import AutoTokenizer

# A base whose renderer the cookbook knows by its name, and which is plain text: role_colon.
BASE = "Qwen/Qwen3-8B-Base"
CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
---
"""
QUESTIONS = 12


def lay_out(home: Path) -> Path:
    """Writes all of it; the directory of the base."""
    base = make_model(home / BASE)
    rows = range(QUESTIONS)
    sums = ({"question": f"What is {n % 3}+0?", "answer": f"so\n#### {n % 3}"} for n in rows)
    chats = (
        {
            "messages": [
                {"role": "user", "content": f"What is {n % 3}+0?"},
                {"role": "assistant", "content": str(n % 3)},
            ]
        }
        for n in rows
    )
    _write(home / "openai" / "gsm8k", sums)
    _write(home / "HuggingFaceH4" / "no_robots", chats)
    (home / "openai" / "gsm8k" / "README.md").write_text(CARD)
    return base


def boxed_digits(base: Path) -> Callable[[random.Random], list[int]]:
    """A writer of answers that are right one time in three."""
    tokenizer = AutoTokenizer.from_pretrained(base)

    def write(chance: random.Random) -> list[int]:
        tokens: list[int] = tokenizer.encode(f" \\boxed{{{chance.randrange(3)}}}")
        return tokens

    return write


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without a line that is not whole yet."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def _write(directory: Path, rows: Iterator[dict[str, Any]]) -> None:
    directory.mkdir(parents=True)
    (directory / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
