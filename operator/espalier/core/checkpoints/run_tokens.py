"""How many tokens the steps of a run took.

Counted of committed steps alone, each once: a commit carries the sum of its run's over all branches
and terms, so that neither a restart nor a rollback counts one twice or forgets it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from espalier.api.checkpoint import Checkpoint
from espalier.api.metric_names import BATCH_AGE, TOKENS_SAMPLED, TOKENS_TRAINED
from espalier.api.run.budget import MOST
from espalier.api.wire.commits import Commit, Tokens
from espalier.core.manifests.labels import RUN_TOKENS_ANNOTATION

NONE = Tokens()


def of_step(metrics: Mapping[str, float]) -> Tokens:
    """The tokens of a step by its metrics: it sampled what its client says, or what it trained.

    One of several steps of a batch says which; the batch's samples count with the first of them.
    """
    trained = metrics.get(TOKENS_TRAINED, 0.0)
    said = metrics.get(TOKENS_SAMPLED, 0.0)
    sampled = said if BATCH_AGE in metrics else max(trained, said)
    return Tokens(sampled=_whole(sampled), trained=_whole(trained))


def of_run(commits: Iterable[Commit], run: str) -> Tokens:
    """The tokens of a run's commits, those that left the tree with a rollback included."""
    steps = [of_step(commit.metrics) for commit in commits if commit.run == run]
    return Tokens(
        sampled=min(MOST, sum(step.sampled for step in steps)),
        trained=min(MOST, sum(step.trained for step in steps)),
    )


def most(one: Tokens, other: Tokens) -> Tokens:
    """The later of two counts of a run, which only grow."""
    return Tokens(sampled=max(one.sampled, other.sampled), trained=max(one.trained, other.trained))


def annotation(tokens: Tokens) -> str:
    """The count as a Checkpoint carries it."""
    return json.dumps(tokens.model_dump(), sort_keys=True)


def recorded(checkpoint: Checkpoint) -> Tokens:
    """The count of the run when a Checkpoint was made; none where that is not on it."""
    text = checkpoint.metadata.annotations.get(RUN_TOKENS_ANNOTATION, "{}")
    try:
        return Tokens.model_validate_json(text)
    except ValidationError:
        return NONE


def _whole(tokens: float) -> int:
    """What a client says may be no count at all."""
    return int(min(float(MOST), max(0.0, tokens)))
