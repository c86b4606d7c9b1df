"""The tasks of a step: on its Checkpoint, and in the status of its run."""

from __future__ import annotations

from tests.core.objects import NOW, checkpoint, commit, digest, run
from tests.core.run_views import view

from espalier.api.run.status import TasksetStatus
from espalier.api.wire.step import TasksetUsed
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.manifests.labels import TASKSET_ANNOTATION
from espalier.core.run import run as runs

USED = TasksetUsed(digest=digest("tasks"), size=8, seed=1)


def test_a_run_says_the_tasks_of_its_latest_checkpoint() -> None:
    made = commit(1).model_copy(update={"taskset": USED})
    written = checkpoint_body(made, "default", BASE_POINT)["metadata"]["annotations"]
    carried = checkpoint(annotations={TASKSET_ANNOTATION: written[TASKSET_ANNOTATION]})
    status = runs.decide(view(checkpoints=[carried]), NOW).status
    assert status.taskset == TasksetStatus(digest=digest("tasks"), size=8, seed=1)
    # What is known stays while its checkpoint is deleted.
    later = runs.decide(view(run=run(status=status.wire())), NOW).status
    assert later.taskset == status.taskset


def test_a_client_that_does_not_say_them_leaves_no_mark_and_a_spoilt_one_says_nothing() -> None:
    metadata = checkpoint_body(commit(1), "default", BASE_POINT)["metadata"]
    assert TASKSET_ANNOTATION not in metadata["annotations"]
    spoilt = checkpoint(annotations={TASKSET_ANNOTATION: '{"digest": "md5:1"}'})
    assert runs.decide(view(checkpoints=[spoilt]), NOW).status.taskset is None
