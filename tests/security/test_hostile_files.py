"""Files of adapters and bases that somebody made to do harm: each is refused by its name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tests.trainer.tiny import ADAPTER

from espalier.trainer.jobs.base_check import inspect
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume import peft_adapter
from espalier.trainer.volume.base_files import Wanted

DEEP = b'{"a":' * 10_000
CONFIGS = {"adapter": "adapter_config.json", "base": "config.json"}
WEIGHTS = {"adapter": "adapter_model.safetensors", "base": "model.safetensors"}
REASONS = {"adapter": "AdapterUnreadable", "base": "BaseUnreadable"}
PLAIN = {"peft_type": "LORA", "r": ADAPTER.rank, "lora_alpha": ADAPTER.alpha}


def made(tmp_path: Path, what: str) -> Path:
    """A directory with a configuration that would do, and weights without a tensor."""
    directory = tmp_path / what
    directory.mkdir()
    (directory / CONFIGS[what]).write_text(json.dumps(PLAIN))
    (directory / WEIGHTS[what]).write_bytes(tensors({}))
    return directory


def refusal(directory: Path) -> tuple[str, str]:
    """Reason and detail."""
    with pytest.raises(UserMistakeError) as refused:
        if directory.name == "adapter":
            peft_adapter.read(directory, ADAPTER, {})
        else:
            inspect(directory, Wanted(ADAPTER))
    return refused.value.problem.reason, refused.value.problem.detail


def tensors(
    header: dict[str, object] | bytes, announced: int | None = None, data: bytes = b"\0" * 8
) -> bytes:
    """A file of safetensors: the length of its header, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + data


def tensor(shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "a header of 2**63 bytes": tensors(b"{}", 2**63),
    "a header longer than the file": tensors(b"{}", 10**6),
    "a header longer than any": tensors(b" " * 100_000_001),
    "no header": b"\0" * 7,
    "a header that is nested": tensors(DEEP),
    "a header that is no text": tensors(b"\xff" * 64),
    "a tensor behind the end": tensors({"a": tensor([2**40], 0, 2**42)}),
    "a tensor that ends before it begins": tensors({"a": tensor([2], 8, 0)}),
    "a tensor of more elements than there are": tensors({"a": tensor([2**40, 2**40], 0, 8)}),
    "a tensor of another size than its data": tensors({"a": tensor([7], 0, 8)}),
    "two tensors in one place": tensors({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}),
    "data that no tensor has": tensors({"a": tensor([1], 0, 4)}),
}


@pytest.mark.parametrize("what", WEIGHTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_of_weights_is_refused(tmp_path: Path, name: str, what: str) -> None:
    directory = made(tmp_path, what)
    (directory / WEIGHTS[what]).write_bytes(HOSTILE[name])
    reason, detail = refusal(directory)
    assert reason == REASONS[what]
    assert WEIGHTS[what] in detail


NO_CONFIGURATION = {
    "nested": DEEP,
    "of many parts": b"[" + b"[]," * 600_000 + b"0]",
    "no text": b"\xff\xfe",
    "a list": b"[1]",
}


@pytest.mark.parametrize("what", CONFIGS)
@pytest.mark.parametrize("name", NO_CONFIGURATION)
def test_a_hostile_configuration_is_refused(tmp_path: Path, name: str, what: str) -> None:
    directory = made(tmp_path, what)
    (directory / CONFIGS[what]).write_bytes(NO_CONFIGURATION[name])
    reason, detail = refusal(directory)
    assert reason == REASONS[what]
    assert CONFIGS[what] in detail
    assert len(detail) < 1000


@pytest.mark.parametrize("what", WEIGHTS)
@pytest.mark.parametrize("files", [CONFIGS, WEIGHTS], ids=["configuration", "weights"])
def test_a_link_to_another_models_file_is_refused(
    tmp_path: Path, files: dict[str, str], what: str
) -> None:
    """A source may be a path of a claim of many: a link would make others' weights one's own."""
    directory = made(tmp_path, what)
    others = (directory / files[what]).rename(tmp_path / "others")
    (directory / files[what]).symlink_to(f"../{others.name}")
    reason, detail = refusal(directory)
    assert reason == REASONS[what]
    assert f"{files[what]} is a link that leads out" in detail
