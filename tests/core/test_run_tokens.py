"""The tokens of a run: counted once, over restarts and rollbacks, whatever a client says."""

from __future__ import annotations

import pytest
from tests.core.objects import commit

from espalier.api.run.budget import MOST
from espalier.api.wire.commits import Tokens
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.checkpoints.run_tokens import of_run, of_step
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.manifests.labels import RUN_TOKENS_ANNOTATION

RUN = "r/uid-r"


@pytest.mark.parametrize(
    ("metrics", "sampled", "trained"),
    [
        ({}, 0, 0),
        ({"tokens/trained": 8.0, "completion/tokens_total": 20.0}, 20, 8),
        # A client that does not say how much it sampled has sampled what it sent.
        ({"tokens/trained": 8.0}, 8, 8),
        ({"tokens/trained": 8.0, "completion/tokens_total": 3.0}, 8, 8),
        ({"tokens/trained": 8.0, "completion/tokens_total": -1e300}, 8, 8),
        # A later step of a batch sampled nothing, and the first one all of it.
        (
            {"tokens/trained": 8.0, "completion/tokens_total": 0.0, "batch/steps_before": 1.0},
            *(0, 8),
        ),
        ({"tokens/trained": 8.0, "completion/tokens_total": 1e300}, MOST, 8),
    ],
)
def test_a_step_counts_what_was_sampled_and_trained(
    metrics: dict[str, float], sampled: int, trained: int
) -> None:
    assert of_step(metrics) == Tokens(sampled=sampled, trained=trained)


def test_a_run_counts_all_of_its_commits_and_no_other_runs() -> None:
    step = {"tokens/trained": 8.0, "completion/tokens_total": 20.0}
    first = commit(1).model_copy(update={"metrics": step})
    rolled_back = commit(2, term=1).model_copy(update={"metrics": step})
    branched = commit(2, branch="b2", term=2).model_copy(update={"metrics": step})
    other = commit(3).model_copy(update={"metrics": step, "run": "other/uid"})
    commits = [first, rolled_back, branched, other]
    assert of_run(commits, RUN) == Tokens(sampled=60, trained=24)
    assert of_run(commits, "other/uid") == Tokens(sampled=20, trained=8)


def test_a_checkpoint_carries_the_count_of_its_run() -> None:
    made = commit(1).model_copy(update={"run_tokens": Tokens(sampled=20, trained=8)})
    body = checkpoint_body(made, "default", BASE_POINT)
    carried = body["metadata"]["annotations"][RUN_TOKENS_ANNOTATION]
    assert carried == '{"sampled": 20, "trained": 8}'
