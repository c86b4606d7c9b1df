"""What puts an import in place: with its parts of the claim, and whatever the importer has become.

The importer opens strangers' bytes. Here it may have been taken over by them: what it leaves in its
folder, and what it says of that, is refused unless it is what an importer of ours leaves.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dev.tiny_model import tokenizer
from tests.kube.children import IMAGE_BASE, SETTINGS, Body, container_of, model_of
from tests.trainer import tiny
from tests.trainer.in_pod import in_container, seen_of, told
from tests.trainer.test_real_volume import MAY_MOUNT
from tests.trainer.tiny import ADAPTER, MODEL, Volume

from espalier.api.source import Resolved
from espalier.core.manifests.importer import importer_job
from espalier.core.volume import base_directory, checkpoints_of, imports_of, log_of
from espalier.trainer.jobs import folders, import_report, importer, place
from espalier.trainer.jobs.import_order import CONVERTED, REPORT, Order
from espalier.trainer.volume import staged_files
from espalier.trainer.volume.checkpoint_store import CheckpointStore

needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="needs CAP_SYS_ADMIN for a mount namespace")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Another model than the one that is on the volume."""
    directory = tmp_path / "source"
    tiny.causal_lm(seed=3).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


class Import:
    """The Job of one model, whose containers run one after the other."""

    def __init__(
        self, volume: Path, source: Path, capsys: pytest.CaptureFixture[str], of: str = MODEL
    ) -> None:
        self._capsys = capsys
        self._environment = {
            "ESPALIER_VOLUME": str(volume),
            "ESPALIER_MODEL": of,
            "ESPALIER_ADAPTER": ADAPTER.model_dump_json(by_alias=True),
        }
        self.volume, self.arguments = volume, ["--directory", str(source)]

    @property
    def order(self) -> Order:
        return Order.read(self.arguments, self._environment)

    @property
    def staged(self) -> Path:
        assert self.order.base is not None
        return self.order.staging / self.order.base.staged

    def _run(self, job: Callable[[list[str]], int]) -> tuple[int, dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            code = job(self.arguments)
        said = self._capsys.readouterr().out
        return code, json.loads(said) if said else {}

    def bring(self) -> None:
        assert folders.main({**self._environment, "ESPALIER_IMPORTS": "true"}) == 0
        assert self._run(importer.main) == (0, {})

    def place(self) -> tuple[int, dict[str, Any]]:
        return self._run(place.main)

    def resolved(self) -> Resolved:
        self.bring()
        code, said = self.place()
        assert code == 0, said
        assert not self.order.staging.exists()
        return Resolved.model_validate(said)

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.order.staging / REPORT).read_text())
        return found


@pytest.fixture
def job(volume: Volume, source: Path, capsys: pytest.CaptureFixture[str]) -> Import:
    return Import(volume.path, source, capsys)


def bases(volume: Path) -> set[str]:
    return {path.name for path in (volume / "bases").glob("sha256-*")}


@needs_mounts
def test_each_container_of_an_import_does_its_part_and_sees_no_more(
    volume: Volume, source: Path, tmp_path: Path
) -> None:
    """With the mounts that the Job's manifest says, beside what other models have there."""
    claim, seat = volume.path, tmp_path / "weights"
    for folder in (log_of(claim, "other"), checkpoints_of(claim, "other")):
        folder.mkdir(parents=True)
        (folder / "secret").touch()
    imports_of(claim, "other").mkdir(parents=True)
    body = importer_job(model_of(source={"base": IMAGE_BASE}), SETTINGS)
    arguments = ["--directory", str(source)]
    message = tmp_path / "message"
    message.touch()

    def run(name: str, job: Callable[[list[str]], int], sees: dict[str, set[str]]) -> None:
        def work() -> None:
            container = container_of(body, name)
            os.environ.update(told(container, seat), ESPALIER_TERMINATION_LOG=str(message))
            assert seen_of(seat) == sees
            assert job(arguments) == 0

        in_container(container_of(body, name), claim, seat, work)

    assert folders.main(told(container_of(body, "folders"), claim)) == 0
    run("importer", importer.main, {"bases": {".imports"}})
    assert [path.name for path in imports_of(claim, "other").iterdir()] == []
    run("place", place.main, {"bases": {".imports", volume.base.replace(":", "-")}})
    digest = Resolved.model_validate_json(message.read_text()).digest
    assert CheckpointStore(claim, "").verify("base", digest).path == base_directory(claim, digest)
    assert bases(claim) == {volume.base.replace(":", "-"), digest.replace(":", "-")}
    assert not imports_of(claim, "arith").exists()


@needs_mounts
def test_an_importer_cannot_bring_anything_elsewhere(tmp_path: Path, volume: Volume) -> None:
    """Not by a rename, not by a second name, and not by a path that leads up."""
    body: Body = importer_job(model_of(source={"base": IMAGE_BASE}), SETTINGS)
    assert folders.main(told(container_of(body, "folders"), volume.path)) == 0
    seat, before = tmp_path / "weights", bases(volume.path)

    def taken_over() -> None:
        own = imports_of(seat, "arith")
        (own / "file").touch()
        for act in (os.rename, os.link):
            with pytest.raises(OSError, match="cross-device"):
                act(own / "file", seat / "bases" / "file")
        # What lies above its folder is the container's own file system.
        (own / ".." / ".." / "above").touch()

    in_container(container_of(body, "importer"), volume.path, seat, taken_over)
    assert bases(volume.path) == before
    assert not (volume.path / "bases" / "above").exists()
    assert [path.name for path in imports_of(volume.path, "arith").iterdir()] == ["file"]


def test_the_same_base_again_or_of_two_models_at_once_is_one_base(
    job: Import, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Import(job.volume, source, capsys, of="other")
    job.bring()
    other.bring()
    found = [Resolved.model_validate(one.place()[1]).digest for one in (job, other)]
    # And of a Job that died when it had put it in place, before it said so.
    found += [job.resolved().digest]
    assert len({*found}) == 1
    assert len(bases(job.volume)) == 2
    CheckpointStore(job.volume, "").verify("base", found[0])


def test_a_try_that_died_before_the_rename_is_done_again(job: Import) -> None:
    job.bring()
    (job.staged / "manifest.json").write_text("{}")
    assert job.resolved().digest.replace(":", "-") in bases(job.volume)


def test_a_base_that_is_there_and_damaged_is_named_with_the_remedy(job: Import) -> None:
    there = base_directory(job.volume, job.resolved().digest)
    (there / "config.json").unlink()
    job.bring()
    code, said = job.place()
    assert (code, said["reason"]) == (64, "BaseUnreadable")
    assert "delete its directory below bases" in said["remedy"]


def test_placing_a_base_opens_no_library_that_reads_models() -> None:
    script = "import sys, espalier.trainer.jobs.place; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert "espalier.trainer.jobs.place" in loaded
    assert {"torch", "safetensors", "transformers", "huggingface_hub"}.isdisjoint(loaded)


Spoil = Callable[[Path, Path], object]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    # A path of a socket is short.
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


def deep(staged: Path) -> None:
    folder = staged.joinpath(*["a"] * staged_files.DEEPEST)
    folder.mkdir(parents=True)
    (folder / "x.json").touch()


def crowd(staged: Path) -> None:
    (staged / "many").mkdir()
    for number in range(staged_files.MOST_FILES):
        (staged / "many" / f"{number}.json").touch()


# What a hostile importer makes of the staged folder, given a file of another model's base.
SPOILT: dict[str, tuple[Spoil, str]] = {
    "a link to another base's file": (
        lambda s, other: (s / "x.json").symlink_to(other),
        "x.json is a link",
    ),
    "a link to another base": (lambda s, other: (s / "x").symlink_to(other.parent), "x is a link"),
    "a link that leads up": (lambda s, _: (s / "x").symlink_to("../.."), "x is a link"),
    "another base's file by a second name": (
        lambda s, other: os.link(other, s / "x.json"),
        "x.json has another name too",
    ),
    "a pipe": (lambda s, _: pipe(s / "x.json"), "x.json is no plain file"),
    "a socket": (lambda s, _: listening(s / "x.json"), "x.json is no plain file"),
    "code": (lambda s, _: (s / "modeling.py").touch(), "modeling.py is no file of a base"),
    "a pickle": (lambda s, _: (s / "x.bin").touch(), "x.bin is no file of a base"),
    "a manifest": (lambda s, _: (s / "manifest.json").touch(), "manifest.json is no file of"),
    "a hidden file": (lambda s, _: (s / ".x.json").touch(), ".x.json is no file of a base"),
    "a name of two lines": (lambda s, _: (s / "a\nb.json").touch(), "a name that is no text"),
    "a name that is no text": (
        lambda s, _: (s / os.fsdecode(b"\xff.json")).touch(),
        "a name that is no text",
    ),
    "folders without end": (lambda s, _: deep(s), "deeper than 8 folders"),
    "files without end": (lambda s, _: crowd(s), "more than 10000 files"),
}


@pytest.mark.parametrize("case", SPOILT.values(), ids=SPOILT)
def test_a_folder_that_no_importer_of_ours_leaves_is_refused(
    job: Import, case: tuple[Spoil, str]
) -> None:
    spoil, says = case
    (other,) = (job.volume / "bases").glob("sha256-*/config.json")
    before, content = bases(job.volume), other.read_bytes()
    job.bring()
    spoil(job.staged, other)
    code, said = job.place()
    assert (code, said["reason"]) == (64, "ImportRefused")
    assert says in said["detail"]
    assert bases(job.volume) == before
    assert (other.read_bytes(), other.stat().st_nlink) == (content, 1)
    assert not job.order.staging.exists()


@pytest.mark.parametrize("what", ["a link to another base", "nothing", "a file"])
def test_a_staged_folder_that_is_none_is_refused(job: Import, what: str) -> None:
    (other,) = (job.volume / "bases").glob("sha256-*")
    job.bring()
    job.staged.rename(job.staged.with_name("away"))
    if what == "a link to another base":
        job.staged.symlink_to(other)
    elif what == "a file":
        job.staged.touch()
    code, said = job.place()
    assert (code, said["reason"]) == (64, "ImportRefused")
    assert [*other.iterdir()]


# Reports that are none, given an honest one.
FORGED: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "no JSON": (lambda _: b"\xff{", "report is none"),
    "nested": (lambda _: b"[" * 10_000, "report is none"),
    "huge": (lambda _: b" " * (import_report.MOST_BYTES + 1), "has more than"),
    "with another digest": (
        lambda report: json.dumps({**report, "digest": f"sha256:{'a' * 64}"}).encode(),
        "digest: Extra inputs",
    ),
    "with a uri": (
        lambda report: json.dumps({**report, "uri": "file:///x"}).encode(),
        "uri: Extra inputs",
    ),
    "with a context that no status holds": (
        lambda report: json.dumps({**report, "context_tokens": 2**70}).encode(),
        "context_tokens",
    ),
    "with a token of another kind": (
        lambda r: json.dumps(
            {**r, "unstopped_turn_end": {"token": "x" * 65, "token_id": 1}}
        ).encode(),
        "unstopped_turn_end.token",
    ),
    "with an adapter that nobody asked for": (
        lambda report: json.dumps({**report, "target_modules": ["q_proj"]}).encode(),
        "of another order",
    ),
    "with too many files": (
        lambda r: json.dumps({**r, "promised": {f"{n}": "a" * 64 for n in range(10_001)}}).encode(),
        "promised",
    ),
}


@pytest.mark.parametrize("case", FORGED.values(), ids=FORGED)
def test_a_report_that_is_none_of_ours_is_refused(
    job: Import, case: tuple[Callable[[dict[str, Any]], bytes], str]
) -> None:
    forge, says = case
    before = bases(job.volume)
    job.bring()
    (job.order.staging / REPORT).write_bytes(forge(job.report()))
    code, said = job.place()
    assert (code, said["reason"]) == (64, "ImportRefused")
    assert says in said["detail"]
    assert len(said["detail"]) < 1000
    assert len(bases(job.volume) - before) == ("of another order" in says)


@pytest.mark.parametrize("what", ["nothing", "a link", "a pipe", "a folder"])
def test_a_report_that_is_no_file_is_refused_and_what_it_leads_to_not_told(
    job: Import, what: str
) -> None:
    job.bring()
    report, secret = job.order.staging / REPORT, job.volume / "secret"
    secret.write_text('{"weights": "of another model"}')
    report.unlink()
    if what == "a link":
        report.symlink_to(secret)
    elif what == "a pipe":
        pipe(report)
    elif what == "a folder":
        report.mkdir()
    code, said = job.place()
    assert (code, said["reason"]) == (64, "ImportRefused")
    assert "weights" not in json.dumps(said)


def test_bytes_that_are_not_what_was_promised_are_brought_anew(job: Import) -> None:
    before = bases(job.volume)
    job.bring()
    promised = {"promised": {"model.safetensors": "a" * 64}}
    (job.order.staging / REPORT).write_text(json.dumps({**job.report(), **promised}))
    code, said = job.place()
    assert (code, said["reason"]) == (1, "DownloadDamaged")
    assert "model.safetensors" in said["detail"]
    assert bases(job.volume) == before
    assert not job.order.staging.exists()


@pytest.fixture
def with_adapter(job: Import, volume: Volume, outside: Path) -> Import:
    """The order of a model that starts from an adapter, on the base that is there."""
    job.arguments = ["--base", volume.base, "--adapter", str(outside), "--model", MODEL]
    return job


def digest_of(job: Import) -> str:
    adapter = job.resolved().adapter
    assert adapter is not None
    return adapter.digest


def test_of_an_adapter_its_tensors_alone_are_taken(with_adapter: Import) -> None:
    honest = digest_of(with_adapter)
    with_adapter.bring()
    converted = with_adapter.order.staging / CONVERTED
    (converted / "state.json").write_text('{"model": "other"}')
    (converted / "adapter_config.json").write_text('{"auto_mapping": "code"}')
    (converted / "x.bin").write_bytes(b"")
    code, said = with_adapter.place()
    assert (code, said["adapter"]["digest"]) == (0, honest)


@pytest.mark.parametrize("spoil", ["a link", "gone", "a pipe"])
def test_an_adapter_whose_tensors_are_no_file_is_refused(with_adapter: Import, spoil: str) -> None:
    secret = with_adapter.volume / "secret"
    secret.write_bytes(b"weights of another model")
    with_adapter.bring()
    tensors = with_adapter.order.staging / CONVERTED / "adapter_model.safetensors"
    tensors.unlink()
    if spoil == "a link":
        tensors.symlink_to(secret)
    elif spoil == "a pipe":
        pipe(tensors)
    code, said = with_adapter.place()
    assert (code, said["reason"]) == (64, "ImportRefused")
    assert [*checkpoints_of(with_adapter.volume, MODEL).iterdir()] == []


def test_what_is_hashed_of_an_adapter_is_a_copy_that_its_importer_cannot_change(
    with_adapter: Import,
) -> None:
    with_adapter.bring()
    tensors = with_adapter.order.staging / CONVERTED / "adapter_model.safetensors"
    with tensors.open("r+b") as held:
        code, said = with_adapter.place()
        held.seek(0)
        held.write(b"changed")
    assert code == 0, said
    store = CheckpointStore(with_adapter.volume, MODEL)
    store.verify("checkpoint", said["adapter"]["digest"])


def test_a_base_that_is_changed_after_it_was_hashed_is_refused_by_who_reads_it(
    job: Import,
) -> None:
    """A process of the importer's pod that outlives it may still hold a file open."""
    job.bring()
    weights = job.staged / "model.safetensors"
    with weights.open("r+b") as held:
        code, said = job.place()
        held.seek(-4, os.SEEK_END)
        held.write(b"evil")
    assert code == 0
    with pytest.raises(Exception, match="corrupt"):
        CheckpointStore(job.volume, MODEL).verify("base", said["digest"])
