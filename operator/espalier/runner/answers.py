"""How many completions hold an answer at all. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from espalier.api.run.taskset import Taskset
from espalier.rewards.extraction import extract
from espalier.runner.rewards import Group


def answered(groups: Sequence[Group], taskset: Taskset | None) -> dict[str, float]:
    """The share of completions in which ``taskset.answerExtraction`` finds nothing; none where
    an environment reads what is written."""
    texts = [completion.text for group in groups for completion in group.written]
    if taskset is None or taskset.played is not None or not texts:
        return {}
    mode = taskset.answer_extraction
    return {"completion/no_answer_fraction": fmean(extract(mode, text) is None for text in texts)}
