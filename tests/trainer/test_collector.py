"""The collector removes the bytes of deleted checkpoints, and only those."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tests.core.objects import checkpoint
from tests.kube.children import SETTINGS, container_of
from tests.trainer import tiny
from tests.trainer.in_pod import in_container, seen_of, told
from tests.trainer.test_fork import same, train, weights
from tests.trainer.test_real_volume import MAY_MOUNT
from tests.trainer.tiny import Volume

from espalier.core.manifests.collector import collector_job
from espalier.core.volume import checkpoints_of, directory_name, log_of
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs import collector, folders
from espalier.trainer.jobs.collector import collect
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.log_admin import resumes_from

needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs CAP_SYS_ADMIN for a mount namespace")


def digests(engine: Engine) -> list[str]:
    return [commit.digest for commit in engine.state.commits]


def on_volume(volume: Volume) -> set[str]:
    return {stored.digest for stored in CheckpointStore(volume.path, "").checkpoints()}


def store(volume: Volume) -> CheckpointStore:
    return CheckpointStore(volume.path, "arith", "collector-arith")


def test_training_goes_on_and_restarts_without_the_bytes_in_between(
    engine: Engine, volume: Volume, policy: Policy
) -> None:
    train(engine, range(4))
    made = digests(engine)
    assert collect(store(volume), "arith", made[1:3], orphaned=False) == {}
    assert on_volume(volume) == {made[0], made[3]}
    stands: dict[str, torch.Tensor] = weights(engine)
    engine.state.log.close()
    again = tiny.engine(volume.path, volume.base, policy)
    assert same(weights(again), stands)
    assert [commit.stored for commit in again.state.commits] == [True, False, False, True]
    train(again, range(4, 5))
    assert (again.state.commits[-1].name, again.state.commits[-1].stored) == ("arith-000005", True)
    again.state.log.close()


def test_a_checkpoint_that_the_trainer_resumes_from_is_refused(
    engine: Engine, volume: Volume
) -> None:
    train(engine, range(2))
    first, last = digests(engine)
    assert resumes_from(store(volume).model_path("arith")) == {last, ""}
    kept = collect(store(volume), "arith", [first, last], orphaned=False)
    assert kept == {last: "the trainer resumes from it"}
    engine.assign(tiny.assignment(2, branch="b2", base=last, base_name="arith-000002", base_step=2))
    assert collect(store(volume), "arith", [last], orphaned=False).keys() == {last}
    assert on_volume(volume) == {last}


def test_with_the_model_its_log_goes_but_not_while_a_trainer_has_it_open(
    engine: Engine, volume: Volume
) -> None:
    train(engine, range(2))
    log = store(volume).model_path("arith")
    assert collect(store(volume), "arith", digests(engine)[:1], orphaned=True) == {}
    assert log.is_dir()
    assert collect(store(volume), "arith", digests(engine)[1:], orphaned=True) == {}
    assert log.is_dir()
    engine.state.log.close()
    assert collect(store(volume), "arith", digests(engine), orphaned=True) == {}
    assert not log.exists()
    assert on_volume(volume) == set()
    assert (volume.path / "bases").is_dir()


def test_checkpoints_of_other_models_and_damaged_ones_are_refused(
    engine: Engine, volume: Volume
) -> None:
    train(engine, range(3))
    first, second, _ = digests(engine)
    assert collect(store(volume), "other", [first], orphaned=True) == {
        first: "it is a checkpoint of model arith"
    }
    directory = store(volume).open("checkpoint", second).path
    (directory / "optimizer.safetensors").write_bytes(b"")
    kept = collect(store(volume), "arith", [second, "sha256:../../bases"], orphaned=False)
    assert "damaged" in kept[second]
    assert kept["sha256:../../bases"] == "it is no digest"
    assert directory.is_dir()


@needs_mounts
@pytest.mark.parametrize("orphaned", [False, True], ids=["of a model", "with its model"])
def test_in_its_pod_it_does_the_same_with_the_models_own_parts(
    volume: Volume, policy: Policy, tmp_path: Path, *, orphaned: bool
) -> None:
    """Beside another model, and with a checkpoint where versions before had those of all."""
    for model in ("other", tiny.MODEL):
        policy.reset()
        trained = tiny.engine(volume.path, volume.base, policy, model=model)
        trained.assign(tiny.assignment())
        train(trained, range(2))
        trained.state.log.close()
    first, last = digests(trained)
    home, log = checkpoints_of(volume.path, tiny.MODEL), log_of(volume.path, tiny.MODEL)
    flat = home.parent / directory_name(first)
    (home / flat.name).rename(flat)
    made = checkpoint(tiny.MODEL)
    given = [
        made.model_copy(update={"spec": made.spec.model_copy(update={"digest": digest})})
        for digest in (first, last)
    ]
    job = collector_job(given, "claim", SETTINGS, orphaned=orphaned)
    assert folders.main(told(container_of(job, "folders"), volume.path)) == 0
    seat, others = tmp_path / "weights", {*(volume.path / "checkpoints" / "other").iterdir()}

    def work() -> None:
        os.environ.update(told(container_of(job), seat))
        assert {part: {*sees} for part, sees in seen_of(seat).items()} == {
            "checkpoints": {tiny.MODEL},
            "models": {tiny.MODEL},
        }
        if not orphaned:
            with pytest.raises(OSError, match="Read-only"):
                (seat / "models" / tiny.MODEL / "probe").touch()
        assert collector.main(container_of(job)["args"]) == 0

    in_container(container_of(job), volume.path, seat, work)
    kept = {} if orphaned else {directory_name(last)}
    assert {path.name for path in home.iterdir()} == {*kept}
    # A folder that is mounted stays, and is empty.
    assert bool([*log.iterdir()]) is not orphaned
    assert {*(volume.path / "checkpoints" / "other").iterdir()} == others
    assert [*log_of(volume.path, "other").iterdir()]
    assert not flat.exists()


def test_a_checkpoint_that_is_gone_counts_as_removed(volume: Volume) -> None:
    assert collect(store(volume), "arith", [f"sha256:{'0' * 64}"], orphaned=False) == {}


def test_the_command_leaves_what_it_kept_and_why(
    engine: Engine, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(engine, range(2))
    first, last = digests(engine)
    message = tmp_path / "termination-log"
    message.write_text("")
    monkeypatch.setenv("ESPALIER_TERMINATION_LOG", str(message))
    monkeypatch.setenv("ESPALIER_VOLUME", str(volume.path))
    assert collector.main(["--model", "arith", first, last]) == 0
    assert json.loads(message.read_text()) == {
        "removed": 1,
        "kept": {last: "the trainer resumes from it"},
    }
    many = [f"{n:064x}" for n in range(100)]
    assert collector.main(["--model", "arith", *many]) == 0
    assert len(message.read_text()) < 4096
    assert json.loads(message.read_text())["removed"] == 0
