"""Who can write the volume cannot have other bytes trained, served or believed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.kube.children import BASE, SETTINGS, model_of
from tests.sampler.tiny import commit
from tests.trainer import tiny
from tests.trainer.test_ranks import environment

from espalier.api.exit_codes import USER_MISTAKE
from espalier.core.manifests.installation import KEYS_FILE, ChildSettings
from espalier.core.manifests.sampler import rollout_deployment
from espalier.core.manifests.trainer import trainer_statefulset
from espalier.sampler.verified_store import StoreError, verify_base

Change = Callable[[Path], object]


def flip(path: Path) -> None:
    """Another byte in the middle, at the same length."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


# Each of them is read by vLLM or transformers.
CHANGES: dict[str, tuple[Change, str]] = {
    "weights": (lambda path: flip(path / "model.safetensors"), "FileAltered"),
    "configuration": (lambda path: flip(path / "config.json"), "FileAltered"),
    "a file more": (
        lambda path: (path / "chat_template.jinja").write_text("{{ messages }}"),
        "FileNotListed",
    ),
    "a link more": (
        lambda path: (path / "tokenizer.json").symlink_to("/etc/passwd"),
        "FileNotListed",
    ),
    "a file less": (lambda path: (path / "config.json").unlink(), "BaseIncomplete"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sampler_does_not_start_on_a_base_that_was_changed_at_equal_size(
    tmp_path: Path, name: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "model.safetensors").write_bytes(b"weights" * 100)
    digest = commit(tmp_path / "weights" / "bases", source, "base")
    directory = tmp_path / "weights" / "bases" / digest.replace(":", "-")
    verify_base(directory)
    change, reason = CHANGES[name]
    change(directory)
    with pytest.raises(StoreError) as refused:
        verify_base(directory)
    assert refused.value.problem.reason == reason


def test_a_trainer_does_not_start_on_a_base_that_was_changed_at_equal_size(
    tmp_path: Path,
) -> None:
    (tmp_path / "source").mkdir()
    base = tiny.write_base(tmp_path / "weights", tmp_path / "source")
    volume = tiny.Volume(tmp_path / "weights", base)
    flip(volume.path / "bases" / volume.base.replace(":", "-") / "model.safetensors")
    log = tmp_path / "termination-log"
    log.touch()
    ended = subprocess.run(
        [sys.executable, "-m", "espalier.trainer", "--host", "127.0.0.1", "--port", "0"],
        env={**os.environ, **environment(volume, ESPALIER_TERMINATION_LOG=str(log))},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == USER_MISTAKE
    assert "BaseUnreadable" in log.read_text()
    assert "model.safetensors" in log.read_text()


def mounts(workload: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def test_a_trainer_cannot_write_the_bases_and_a_sampler_nothing() -> None:
    settings = ChildSettings(SETTINGS.images, KEYS_FILE, SETTINGS.gateway_url)
    trainer = mounts(trainer_statefulset(model_of(), settings, base=BASE, replicas=1))
    assert trainer["/weights/bases"] == {
        "name": "weights",
        "mountPath": "/weights/bases",
        "subPath": "bases",
        "readOnly": True,
    }
    sampler = mounts(rollout_deployment(model_of(), settings, base=BASE))
    assert sampler["/weights"]["readOnly"] is True
    # A subPath would keep the keys of the pod's start.
    for found in (trainer, sampler):
        assert found["/etc/espalier/keys"] == {
            "name": "keys",
            "mountPath": "/etc/espalier/keys",
            "readOnly": True,
        }
