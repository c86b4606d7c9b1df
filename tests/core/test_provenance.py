"""What a run is made from: its spec, the base, the images of its pods."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import NOW, digest, model, run
from tests.core.run_views import view

from espalier.api.run.status import Provenance
from espalier.api.trainingrun import TrainingRun
from espalier.core.pods import pods
from espalier.core.run import run as runs

RESOLVED = {"uri": "volume://bases/b", "digest": digest("base")}


def of(subject: TrainingRun, **changes: Any) -> Provenance:
    found = runs.decide(view(run=subject, **changes), NOW).status.provenance
    assert found is not None
    return found


def test_every_edit_of_the_spec_is_another_configuration_and_nothing_else_is() -> None:
    same = {of(run()).config_digest, of(run("other")).config_digest}
    same.add(of(run(status={"step": 3})).config_digest)
    assert len(same) == 1
    assert of(run(learningRate="2e-4")).config_digest not in same


def test_base_and_images_stay_known_once_model_and_pods_are_gone() -> None:
    images = {"trainer": digest("t"), "rollout": digest("r")}
    base = model(status={"resolved": RESOLVED})
    seen = of(run(), model=base, images=images)
    assert seen.model_digest == digest("base")
    assert [(one.role, one.digest) for one in seen.images] == sorted(images.items())
    before = run(status={"provenance": seen.wire()})
    assert of(before, model=None) == seen
    newer = of(before, images={"trainer": digest("t2")})
    assert {one.role: one.digest for one in newer.images} == {**images, "trainer": digest("t2")}


def test_the_revision_of_git_is_told_where_an_annotation_says_it() -> None:
    applied = run(meta={"annotations": {"espalier.dev/git-revision": "1f3870be"}})
    assert of(applied).git_revision == "1f3870be"
    assert of(run()).git_revision is None
    # Another commit that leaves the spec alone is the same configuration.
    assert of(applied).config_digest == of(run()).config_digest


@pytest.mark.parametrize(
    ("image_id", "shown"),
    [
        (f"ghcr.io/x/trainer@{digest('t')}", digest("t")),
        (f"docker-pullable://x@{digest('t')}", digest("t")),
        ("", ""),
        # Of an image that was loaded onto the node and never pushed.
        ("docker.io/library/import-2026@sha256:short", ""),
    ],
)
def test_the_image_of_a_pod_is_told_by_its_node(image_id: str, shown: str) -> None:
    container = {"name": "trainer", "imageID": image_id, "state": {"running": {}}}
    body = {
        "metadata": {"name": "p", "labels": {"espalier.dev/role": "trainer"}},
        "spec": {"containers": [{"name": "trainer"}]},
        "status": {"phase": "Running", "containerStatuses": [container]},
    }
    assert pods.read_pod(body).image == shown
