"""The scrubber finds every byte that is not what was written, at no more than its rate."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from tests.trainer.test_collector import digests
from tests.trainer.test_fork import train
from tests.trainer.tiny import Volume

from espalier.core.checkpoints.scrub_report import Report, key_of
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs import scrubber
from espalier.trainer.jobs.scrubber import SlowReader, scrub
from espalier.trainer.volume.checkpoint_store import CheckpointStore


def directory(volume: Volume, digest: str) -> Path:
    return volume.path / "checkpoints" / "arith" / digest.replace(":", "-")


def flip(path: Path) -> None:
    """One bit, as a disk does: size and time stay."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_rot_and_loss_are_named_and_the_rest_is_found_as_it_was_written(
    engine: Engine, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train(engine, range(4))
    made = digests(engine)
    flip(directory(volume, made[1]) / "adapter_model.safetensors")
    shutil.rmtree(directory(volume, made[2]))
    (directory(volume, made[3]) / 'more"\u2028.bin').write_text("")
    left = tmp_path / "left"
    left.touch()
    monkeypatch.setenv("ESPALIER_TERMINATION_LOG", str(left))
    monkeypatch.setenv("ESPALIER_VOLUME", str(volume.path))
    given = ["--mebibytes-per-second", "1000", "--base", volume.base, *made]
    assert scrubber.main(given) == 0
    found = Report.model_validate_json(left.read_text())
    assert (found.checked, found.base) == (4, "")
    reasons = {key: fault.reason for key, fault in found.rotten.items()}
    assert reasons == {
        key_of(made[1]): "BytesAltered",
        key_of(made[2]): "BytesMissing",
        key_of(made[3]): "BytesAltered",
    }
    assert "adapter_model.safetensors" in found.rotten[key_of(made[1])].detail


def test_a_rotten_base_is_found_and_the_reader_keeps_to_its_rate(volume: Volume) -> None:
    store = CheckpointStore(volume.path, "arith")
    base = store.open("base", volume.base).path
    flip(base / "model.safetensors")
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept = max(slept, seconds)

    reader = SlowReader(1000.0, clock=lambda: 0.0, sleep=sleep)
    found = scrub(store, volume.base, [], reader)
    assert "model.safetensors" in found.base
    assert found.read_bytes == reader.read_bytes > 100_000
    # On a clock that stands still the last byte is due after all of them.
    assert slept == pytest.approx(reader.read_bytes / 1000.0)


def test_a_volume_that_does_not_answer_accuses_no_bytes_and_a_disk_that_cannot_read_does(
    volume: Volume,
) -> None:
    store = CheckpointStore(volume.path, "arith")

    class Failing(SlowReader):
        error = errno.ESTALE

        def sha256_of(self, path: Path) -> str:
            raise OSError(self.error, "as the kernel says it", str(path))

    with pytest.raises(OSError, match="as the kernel says it"):
        scrub(store, volume.base, [], Failing(1.0))
    Failing.error = errno.EIO
    assert "as the kernel says it" in scrub(store, volume.base, [], Failing(1.0)).base
