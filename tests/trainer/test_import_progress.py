"""How far an import is, as its pod tells whoever asks."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_url
from tests.trainer.hub_server import NAME, REVISION, Hub

from espalier.api.wire.import_state import ImportState
from espalier.trainer.jobs import hub as hub_client
from espalier.trainer.jobs import importer
from espalier.trainer.jobs.hub import Download
from espalier.trainer.jobs.hub_repository import Repository
from espalier.trainer.jobs.import_progress import Progress, served
from espalier.trainer.volume.base_files import PATTERNS


def asked(port: int, path: str = "/progress") -> ImportState:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return ImportState.model_validate(json.load(answer))


def test_the_rate_is_that_of_late_and_leaves_out_what_was_there_before() -> None:
    at = {"seconds": 0.0, "bytes": 100}
    progress = Progress(lambda: at["seconds"])
    assert progress.state() == ImportState(done_bytes=0, total_bytes=0, bytes_per_second=0)
    progress.begin(1000, lambda: int(at["bytes"]))
    seen = []
    # The window begins anew at 20 s, so that a download that hangs shows it.
    for seconds, have in ((10.0, 300), (20.0, 400), (30.0, 400), (40.0, 400), (50.0, 450)):
        at.update(seconds=seconds, bytes=have)
        state = progress.state()
        seen.append((state.done_bytes, state.bytes_per_second))
    assert seen == [(300, 20), (400, 15), (400, 0), (400, 0), (450, 5)]


def test_progress_is_served_over_http_and_a_silent_caller_blocks_others_only_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("espalier.trainer.jobs.import_progress.CALL_SECONDS", 0.2)
    monkeypatch.setenv("ESPALIER_HOST", "127.0.0.1")
    progress = Progress()
    progress.begin(10, lambda: 4)
    with served(progress, 0) as port, socket.create_connection(("127.0.0.1", port)):
        assert asked(port).done_bytes == 4
        with pytest.raises(urllib.error.HTTPError, match="404"):
            asked(port, "/other")


def test_an_import_goes_on_where_its_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_HOST", "127.0.0.1")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        served(Progress(), taken.getsockname()[1]) as port,
    ):
        assert port == 0


def test_a_download_counts_what_lies_on_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress()
    with Hub({"config.json": b"{}", "model.safetensors": b"w" * 5000}) as hub:
        for name, asks in (("HfApi", HfApi), ("hf_hub_url", hf_hub_url)):
            monkeypatch.setattr(hub_client, name, partial(asks, endpoint=hub.url))
        repository = Repository(NAME, REVISION, "spec.source.base.huggingFace")
        Download(repository, tmp_path / "d", PATTERNS, "", 5.0, progress).run()
    state = progress.state()
    assert (state.done_bytes, state.total_bytes) == (5002, 5002)


def test_a_directory_counts_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"w" * 100)
    progress, seen = Progress(), []
    copy = shutil.copyfile

    def watched(path: Path, target: Path) -> None:
        copy(path, target)
        seen.append(progress.state().done_bytes)

    monkeypatch.setattr(importer.shutil, "copyfile", watched)
    monkeypatch.setattr(importer, "model_files", lambda _: sorted(source.iterdir()))
    importer.copy_directory(tmp_path, source, "", progress)
    assert seen == [2, 102]
    assert progress.state().total_bytes == 102
