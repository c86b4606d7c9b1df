"""Whose checkpoints the pods of a model may read."""

from __future__ import annotations

import pytest
from tests.core.objects import model, run
from tests.core.test_pods import pod

from espalier.api.model.status import Read
from espalier.core.model import reads
from espalier.core.pods.pods import read_pod
from espalier.core.run import turn as turns

FORK = {"source": {"checkpointRef": {"name": "parent-000001"}}}
HELD = {"kl": {"reference": {"checkpointRef": {"name": "teacher-000002"}}}}
PARENT = Read(checkpoint="parent-000001", model="parent")
TEACHER = Read(checkpoint="teacher-000002", model="teacher")
MODELS = {read.checkpoint: read.model for read in (PARENT, TEACHER)}


def test_a_model_on_a_base_reads_nobody_elses() -> None:
    plain = model()
    assert reads.named(plain, [run()]) == ()
    assert reads.of(plain, (), {}) == []


def test_a_fork_reads_its_parents_and_its_trainer_the_reference_of_the_run_as_well() -> None:
    fork, held = model(**FORK), run(**HELD)
    found = reads.of(fork, reads.named(fork, [run(), held]), MODELS)
    assert found == [PARENT, TEACHER]
    # Samplers, or the trainer while it is another run's turn.
    assert reads.folders(found, reads.named(fork, [])) == ("parent",)
    assert reads.folders(found, reads.named(fork, [held])) == ("parent", "teacher")


def test_a_reference_of_its_own_or_to_the_base_is_no_others() -> None:
    own = run(kl={"reference": {"checkpointRef": {"name": "m-000001"}}})
    assert reads.of(model(), reads.named(model(), [own]), {"m-000001": "m"}) == []
    assert reads.named(model(), [run(kl={"reference": {"base": {}}})]) == ()


def test_whose_a_checkpoint_was_is_known_after_its_object_is_gone() -> None:
    fork = model(status={"reads": [PARENT.wire()]}, **FORK)
    assert reads.of(fork, reads.named(fork, []), {}) == [PARENT]
    assert reads.of(model(**FORK), reads.named(fork, []), {}) == []


def test_what_runs_name_that_wait_for_their_turn_is_remembered_and_of_those_that_are_over_not() -> (
    None
):
    first, second = run("a"), run("b", **HELD)
    over = run("c", status={"step": 10}, kl={"reference": {"checkpointRef": {"name": "x-000001"}}})
    names = reads.named(model(), turns.waiting([over, first, second]))
    assert names == ("teacher-000002",)


def test_a_sidecar_that_stands_before_the_main_container_hides_nothing_that_it_mounts() -> None:
    mounted = {"name": "trainer", "volumeMounts": [{"name": "w", "subPath": "checkpoints/parent"}]}
    found = read_pod({**pod(), "spec": {"containers": [{"name": "istio-proxy"}, mounted]}})
    assert reads.sees(found, [PARENT])


@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        (["checkpoints/m", "checkpoints/parent"], True),
        (["checkpoints/m"], False),
        # Of a version before, which showed all of them.
        (["checkpoints", "checkpoints/m"], True),
    ],
)
def test_a_pod_sees_what_it_mounts(parts: list[str], *, seen: bool) -> None:
    mounts = [{"name": "weights", "subPath": part} for part in parts]
    spec = {"containers": [{"name": "trainer", "volumeMounts": [{"name": "tmp"}, *mounts]}]}
    found = read_pod({**pod(), "spec": spec})
    assert reads.sees(found, [PARENT]) is seen
    assert reads.sees(found, [])
