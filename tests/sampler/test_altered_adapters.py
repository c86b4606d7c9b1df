"""Bytes of adapters that change under a running sampler are not served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.sampler import tiny
from tests.sampler.test_server import Weights

from espalier import identity
from espalier.sampler.verified_files import StoreError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    model = tiny.make_model(tmp_path / "model")
    volume = tmp_path / "weights"
    base = tiny.commit_base(volume, model)
    digests = tuple(tiny.commit_adapter(volume, model, base, seed=seed) for seed in range(3))
    return Weights(volume, model, base, digests)


@contextmanager
def copied(directory: Path) -> Iterator[Path]:
    # With vLLM, which every worker would import if it were imported above.
    from espalier.sampler import verified_load

    with verified_load.copied(directory) as copy:
        yield copy


def test_vllm_serves_the_bytes_that_were_hashed_and_loads_no_others(
    weights: Weights, tmp_path: Path
) -> None:
    """Also where nobody looked again between the change and vLLM's own reading."""
    key = identity.generate_private_key()
    keys = {"ESPALIER_PUBLIC_KEYS": identity.PublicKeys.of(key, key).text()}
    adapters = [str(weights.directory(index)) for index in range(3)]
    command = [sys.executable, "-m", "tests.sampler.engine_alone"]
    ended = subprocess.run(
        [*command, str(weights.volume), weights.base, *adapters],
        env=os.environ | keys | {"TMPDIR": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["before"] not in found["others"]
    assert found["kept"] == found["before"]
    assert found["evicted"].startswith("AlteredAdapterError")
    assert "adapter_model.safetensors" in found["evicted"]


def test_what_is_read_of_a_copy_outlives_it_and_cannot_be_written(weights: Weights) -> None:
    directory = weights.directory(0)
    with copied(directory) as copy:
        files = sorted(copy.iterdir())
        assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
        assert all(file.read_bytes() == (directory / file.name).read_bytes() for file in files)
        with pytest.raises(PermissionError), files[1].open("r+b") as opened:
            opened.write(b"x")
            opened.flush()
    assert not copy.exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_copy_of_what_was_altered_is_refused(weights: Weights, name: str) -> None:
    file = weights.directory(0) / name
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    with pytest.raises(StoreError) as refused, copied(file.parent):
        pass
    assert refused.value.problem.reason == "FileAltered"
