"""The data that recipes of Tinker's cookbook download otherwise, as sums of small numbers.

``python data.py DIRECTORY [--largest N]``. The recipes find it when they are started in DIRECTORY,
because ``datasets`` looks there first: each directory has the name of a dataset of the hub.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

# GSM8K is asked for by the name of a configuration.
CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""
# How the model that grades is asked to say a score, and where it is found.
RUBRIC = {
    "extraction_regex": "<score>(.*?)</score>",
    "grader_output_format_instruction": "Write 0 or 1 between <score> and </score>.",
}


def write(home: Path, split: str, count: int, largest: int) -> None:
    """Writes one split of all datasets, and of what ``rubric`` is told to read."""
    chance = random.Random(split)
    pairs = [(chance.randint(0, largest), chance.randint(0, largest)) for _ in range(count)]
    rows: dict[str, list[dict[str, object]]] = {
        "openai/gsm8k": [],
        "HuggingFaceH4/no_robots": [],
        "Anthropic/hh-rlhf": [],
        "zwhe99/DeepMath-103K": [],
        "allenai/tulu-3-sft-mixture": [],
        "rubric": [],
    }
    for one, other in pairs:
        asked, answer = f"What is {one} + {other}?", one + other
        turns = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"\\boxed{{{answer}}}"},
        ]
        dialogue = f"\n\nHuman: {asked}\n\nAssistant: "
        choice = {"chosen": f"{dialogue}{answer}", "rejected": f"{dialogue}It is {answer + 1}."}
        rows["openai/gsm8k"].append({"question": asked, "answer": f"#### {answer}"})
        rows["HuggingFaceH4/no_robots"].append({"messages": turns})
        rows["Anthropic/hh-rlhf"].append(choice)
        rows["zwhe99/DeepMath-103K"].append({"question": asked, "final_answer": str(answer)})
        rows["allenai/tulu-3-sft-mixture"].append({"messages": turns})
        item = {**RUBRIC, "rubric_str": f"Does the chatbot say {answer}?"}
        rows["rubric"].append({"convo": turns[:1], "rubric_items": [item]})
    for dataset, written in rows.items():
        directory = home / dataset
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{split}.jsonl").write_text("\n".join(map(json.dumps, written)) + "\n")
    (home / "openai" / "gsm8k" / "README.md").write_text(CARD)


def main() -> None:
    """Writes the training rows, and fewer for tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--largest", type=int, default=9, help="number of a sum")
    parser.add_argument("--rows", type=int, default=512, help="to train on; an eighth for tests")
    given = parser.parse_args()
    write(given.directory, "train", given.rows, given.largest)
    write(given.directory, "test", max(given.rows // 8, 2), given.largest)


if __name__ == "__main__":
    main()
