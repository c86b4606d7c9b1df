"""A trainer trains from the bytes that were hashed, though another process may write the files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from tests.trainer import tiny
from tests.trainer.forking import in_a_fork
from tests.trainer.test_ranks import environment
from tests.trainer.tiny import ADAPTER, FULL, MODEL, Volume
from torch import Tensor
from typing_extensions import override

from espalier.api.exit_codes import FAULT
from espalier.api.model.adapter import Adapter
from espalier.core.volume import base_directory, checkpoints_of
from espalier.trainer import __main__ as trainer
from espalier.trainer.compute.adamw import Proposal
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.detokenizer import Detokenizer
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.jobs import export
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.ranks.this_rank import read_world
from espalier.trainer.settings import read_settings
from espalier.trainer.volume.checkpoint_store import CheckpointStore
from espalier.trainer.volume.command_log import CommandLog
from espalier.unchanged import ChangedError

WEIGHTS = "model.safetensors"


@contextmanager
def altered(file: Path) -> Iterator[None]:
    """Other bytes inside; afterwards those of before, and the time when they were written."""
    before, then = file.read_bytes(), file.stat()
    overwrite(file)
    yield
    file.write_bytes(before)
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))


def overwrite(file: Path) -> None:
    """Zeros in the file that is there, behind the header of one in safetensors."""
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little") if file.suffix == ".safetensors" else 0
    with file.open("r+b") as opened:
        opened.seek(header)
        opened.write(bytes(len(content) - header))


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a process leaves as its termination message."""
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setenv("ESPALIER_TERMINATION_LOG", str(file))
    return file


def assert_ended(code: int, left: Path, name: str) -> None:
    assert code == FAULT
    problem = json.loads(left.read_text())
    assert problem["reason"] == "FilesChanged"
    assert problem["detail"].startswith(f"{name} of sha256-")
    assert "find out who else writes the claim" in problem["remedy"]


def base_file(volume: Volume, name: str = WEIGHTS) -> Path:
    return base_directory(volume.path, volume.base) / name


@pytest.mark.parametrize("adapter", [ADAPTER, FULL], ids=["LoRA", "Full"])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", ""])
def test_a_trainer_does_not_start_on_a_base_that_was_altered_while_it_was_loaded(
    volume: Volume, left: Path, name: str, adapter: Adapter
) -> None:
    """Between hashing and loading, and put back before anybody looks again.

    Without its configuration it cannot be loaded, which would be told as the user's mistake.
    """
    settings = read_settings(environment(volume, adapter))
    load = trainer.load_policy

    def loading(*arguments: object) -> Policy:
        with altered(base_file(volume, name)) if name else nullcontext():
            return load(*arguments)  # type: ignore[arg-type]

    def start() -> None:
        trainer.load_policy = loading  # type: ignore[assignment]
        trainer.make_engine(settings, read_world({}), lambda _: None)

    code = in_a_fork(start)
    if name:
        assert_ended(code, left, name)
    else:
        assert (code, left.read_text()) == (0, "")


@pytest.mark.parametrize("damage", ["a link", "a byte", "no base"])
def test_a_base_that_is_damaged_and_stays_so_is_the_users_to_mend(
    volume: Volume, tmp_path: Path, damage: str
) -> None:
    """Told as a change it would be started again for ever."""
    settings = read_settings(environment(volume, ADAPTER))
    config = base_file(volume, "config.json")
    told = tmp_path / "told"

    def start() -> None:
        if damage == "a link":
            config.rename(tmp_path / "config.json")
            config.symlink_to(tmp_path / "config.json")
        elif damage == "a byte":
            overwrite(base_file(volume))
        else:
            config.parent.rename(tmp_path / "aside")
        try:
            trainer.make_engine(settings, read_world({}), lambda _: None)
        except UserMistakeError as error:
            told.write_text(error.problem.reason)

    assert (in_a_fork(start), told.read_text()) == (0, "BaseUnreadable")


class Altering(LocalCompute):
    """A compute during whose reads and writes another process alters a file, and puts it back."""

    file: Path | None = None

    @contextmanager
    def _altered(self) -> Iterator[None]:
        if self.file is None:
            yield
            return
        with altered(self.file):
            yield

    @override
    def load(self, checkpoint: Path, moments: int | None) -> None:
        with self._altered():
            super().load(checkpoint, moments)

    @override
    def hold_reference(self, checkpoint: Path | None) -> None:
        with self._altered():
            super().hold_reference(checkpoint)

    @override
    def reset(self) -> None:
        with self._altered():
            super().reset()

    @override
    def write(self, proposal: Proposal, directory: Path) -> None:
        with self._altered():
            super().write(proposal, directory)


def engine_of(volume: Volume, adapter: Adapter) -> tuple[Engine, Altering]:
    """An engine one step from the base."""
    store = CheckpointStore(volume.path, MODEL)
    compute = Altering(tiny.policy(volume.path, volume.base, adapter))
    log = CommandLog(store.model_directory(MODEL), lock_seconds=1.0)
    state = TrainingState(model=MODEL, base=volume.base, compute=compute, store=store, log=log)
    engine = Engine(state)
    engine.assign(tiny.assignment())
    step(engine)
    return engine, compute


def step(engine: Engine, first: int = 0) -> None:
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("s", first))
    tiny.send(engine, "optim-step", tiny.optim_step(), ("s", first + 1))


def checkpoint_file(engine: Engine, volume: Volume, name: str) -> Path:
    directory = engine.state.position.digest.replace(":", "-")
    return checkpoints_of(volume.path, MODEL) / directory / name


def stand_again(engine: Engine) -> None:
    at = engine.state.position
    where = {"base": at.digest, "base_name": at.name, "base_step": at.step}
    engine.assign(tiny.assignment(2, **where))


def refer(engine: Engine) -> None:
    asked = tiny.forward(reference=engine.state.position.name)
    tiny.send(engine, "forward", asked, ("s", 2))


def back_to_the_base(engine: Engine) -> None:
    engine.assign(tiny.assignment(2))


Case = tuple[Adapter, str, bool, Callable[[Engine], None]]
CASES: dict[str, Case] = {
    "weights of an adapter": (ADAPTER, "adapter_model.safetensors", True, stand_again),
    "moments of an adapter": (ADAPTER, "optimizer.safetensors", True, stand_again),
    "state of an adapter": (ADAPTER, "state.json", True, stand_again),
    "full weights": (FULL, WEIGHTS, True, stand_again),
    "full moments": (FULL, "optimizer/moments.safetensors", True, stand_again),
    "a reference": (ADAPTER, "adapter_model.safetensors", True, refer),
    "full weights of the base": (FULL, WEIGHTS, False, back_to_the_base),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trainer_ends_where_it_has_read_files_that_were_altered_meanwhile(
    volume: Volume, left: Path, case: str
) -> None:
    """It starts again from its log, and hashes everything anew."""
    adapter, name, of_checkpoint, act = CASES[case]
    engine, compute = engine_of(volume, adapter)
    file = checkpoint_file(engine, volume, name) if of_checkpoint else base_file(volume, name)

    def work() -> None:
        compute.file = file
        act(engine)

    try:
        code = in_a_fork(work)
        assert_ended(code, left, name)
        if of_checkpoint:
            # Hashed again, unlike the base, which a process hashes when it starts.
            act(engine)
    finally:
        engine.state.log.close()


def touch(directory: Path) -> None:
    """As a backup or a chmod does: no byte is another, each ctime is."""
    for file in [directory, *directory.rglob("*")]:
        file.chmod(file.stat().st_mode)


@pytest.mark.parametrize("act", [refer, back_to_the_base])
def test_what_was_only_touched_since_it_was_hashed_ends_no_trainer(
    volume: Volume, act: Callable[[Engine], None]
) -> None:
    """It is hashed again before it is read again."""
    engine, _ = engine_of(volume, ADAPTER if act is refer else FULL)
    act(engine)
    directory = checkpoint_file(engine, volume, "") if act is refer else base_file(volume, "")

    def work() -> None:
        touch(directory)
        if act is refer:
            refer_again(engine)
        else:
            engine.assign(tiny.assignment(3))

    try:
        assert in_a_fork(work) == 0
    finally:
        engine.state.log.close()


def refer_again(engine: Engine) -> None:
    asked = tiny.forward(reference=engine.state.position.name)
    tiny.send(engine, "forward", asked, ("s", 3))


def test_a_full_checkpoint_has_the_tokenizer_that_was_hashed_whatever_became_of_the_base(
    volume: Volume,
) -> None:
    before = base_file(volume, "tokenizer.json").read_bytes()
    engine, _ = engine_of(volume, FULL)

    def work() -> None:
        for file in base_file(volume, "").glob("*.json"):
            overwrite(file)
        step(engine, 2)
        assert checkpoint_file(engine, volume, "tokenizer.json").read_bytes() == before

    try:
        assert in_a_fork(work) == 0
    finally:
        engine.state.log.close()


@pytest.mark.parametrize(("spoil", "spells"), [(touch, True), (overwrite, False)])
def test_text_is_spelt_by_the_tokenizer_that_was_hashed_or_not_at_all(
    volume: Volume, spoil: Callable[[Path], None], spells: bool
) -> None:
    """It is loaded when it is first needed, maybe days later."""
    detokenizer = Detokenizer(CheckpointStore(volume.path, MODEL), volume.base)
    file = base_file(volume, "tokenizer.json")
    spoil(file.parent if spoil is touch else file)
    assert (detokenizer.text([5], special=True) is not None) is spells


def held(compute: LocalCompute) -> dict[str, Tensor]:
    """All tensors that a compute works with."""
    reference = compute.reference.weights or {}
    model = compute.policy.causal_lm
    return {
        **dict(model.named_parameters()),
        **dict(model.named_buffers()),
        **compute.moments.tensors(),
        **{f"reference.{name}": value for name, value in reference.items()},
    }


@pytest.mark.parametrize("adapter", [ADAPTER, FULL], ids=["LoRA", "Full"])
def test_what_was_loaded_stays_when_its_files_are_overwritten(
    volume: Volume, adapter: Adapter
) -> None:
    """transformers and safetensors map files: what is written to them later would be loaded too."""
    engine, compute = engine_of(volume, adapter)
    stand_again(engine)
    if adapter is ADAPTER:
        refer(engine)
    before = {name: value.detach().clone() for name, value in held(compute).items()}
    read = [base_file(volume), *checkpoint_file(engine, volume, "").rglob("*.safetensors")]
    assert len(read) == 3
    for file in read:
        overwrite(file)
    changed = [name for name, value in held(compute).items() if not value.equal(before[name])]
    assert changed == []
    engine.state.log.close()


def test_an_export_of_files_that_were_altered_meanwhile_leaves_nothing(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = engine_of(volume, ADAPTER)
    digest = engine.state.position.digest
    engine.state.log.close()
    copy, file = export._write_adapter, base_file(volume, "tokenizer.json")

    def copying(*arguments: object) -> None:
        copy(*arguments)  # type: ignore[arg-type]
        with altered(file):
            pass

    monkeypatch.setattr(export, "_write_adapter", copying)
    output = tmp_path / "exported"
    with pytest.raises(ChangedError, match=r"tokenizer\.json"):
        export.export(volume.path, digest, output, export.Wanted(), force=False)
    assert not output.exists()
