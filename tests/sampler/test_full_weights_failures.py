"""Loads that fail inside the engine: the weights before them are put back, or the pod is given up.

What is asked for was verified before, so no real file makes vLLM fail here: the engine is scripted.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from tests.sampler import tiny
from tests.trainer.forking import in_a_fork
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.exceptions import GracefulHTTPError

from espalier.api.exit_codes import FAULT
from espalier.core.volume import base_directory
from espalier.sampler.control_route import ControlRoutes
from espalier.sampler.full_weights.gate import WeightsGate
from espalier.sampler.full_weights.serving import FullServing
from espalier.sampler.full_weights.store import FullStore
from espalier.sampler.served import ServeError
from espalier.sampler.verified_store import verify_base

pytestmark = pytest.mark.vllm


class Engine:
    """Loads what it is told, but for the calls, counted from 1, that fail.

    ``meanwhile`` is done in each call, with the files that are loaded.
    """

    def __init__(
        self, *failing: int, meanwhile: Callable[[list[str]], object] = lambda _: None
    ) -> None:
        self._failing = failing
        self.meanwhile = meanwhile
        self._calls = 0
        self.paused = False
        self.loaded: Sequence[str] = ()

    async def pause_generation(self, **_: object) -> None:
        self.paused = True

    async def resume_generation(self) -> None:
        self.paused = False

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[str]:
        assert (method, self.paused) == ("load_full_weights", True)
        self._calls += 1
        self.meanwhile(args[0])
        self.loaded = () if self._calls in self._failing else args[0]
        return [""] if self.loaded else ["RuntimeError: no memory"]

    async def check_health(self) -> None:
        return


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError


@pytest.fixture
def serving(tmp_path: Path) -> Callable[[Engine], tuple[FullServing, Any, list[str]]]:
    """Makes the serving of an engine, with the models that vLLM knows and two checkpoints."""
    model = tiny.make_model(tmp_path / "model")
    base = tiny.commit_base(tmp_path, model)
    digests = [tiny.commit_full(tmp_path, model, base, seed=seed) for seed in (1, 2)]

    def make(engine: Engine) -> tuple[FullServing, Any, list[str]]:
        models = SimpleNamespace(base_model_paths=[BaseModelPath("base", "")], lora_resolvers=[])
        state = SimpleNamespace(engine_client=engine, openai_serving_models=models)
        noted = verify_base(base_directory(tmp_path, base))
        store = FullStore(tmp_path, base, noted=noted, tied=True)
        subject = FullServing(state, store, WeightsGate(nothing))
        return subject, models, [f"tiny@{digest[7:19]}" for digest in digests]

    return make


async def test_after_a_load_that_failed_the_weights_before_are_loaded_and_served(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]],
) -> None:
    engine = Engine(2)
    subject, models, (a, b) = serving(engine)
    await subject.serve([a])
    before = engine.loaded
    with pytest.raises(ServeError, match=f"no memory; {a} stays served") as caught:
        await subject.serve([b])
    assert (caught.value.status, caught.value.problem.reason) == (500, "LoadFailed")
    assert (engine.loaded, engine.paused) == (before, False)
    assert [path.name for path in models.base_model_paths] == [a]
    assert (await subject.served()).model_dump() == {"adapters": [a], "base": False, "ready": True}
    await subject.check_health()
    assert (await subject.serve([b])).adapters == [b]


async def test_an_engine_that_cannot_go_back_answers_nothing_more_and_is_called_dead(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]],
) -> None:
    engine = Engine(1, 2)
    subject, models, (a, b) = serving(engine)
    for name in (a, b):
        with pytest.raises(ServeError) as caught:
            await subject.serve([name])
        assert (caught.value.status, caught.value.problem.reason) == (500, "EngineBroken")
    assert (engine.paused, models.base_model_paths) == (True, [])
    with pytest.raises(RuntimeError, match="no memory"):
        await subject.check_health()
    with pytest.raises(GracefulHTTPError) as refused:
        await models.lora_resolvers[0].resolve_lora("", "base")
    assert refused.value.http_status == 503


class Writer:
    """Another process, which writes the bytes again that a file has."""

    def __init__(self, *directories: str) -> None:
        self._directories = directories

    def __call__(self, files: list[str]) -> None:
        for file in map(Path, files):
            if file.parent.name.startswith(self._directories):
                file.write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda base: (base / "model.safetensors").write_bytes(b"others"), "FilesChanged"),
        (lambda base: base.rename(base.with_name("aside")), "FilesChanged"),
        (lambda base: None, "StartFailed"),
    ],
    ids=["altered", "gone", "as it was"],
)
def test_a_server_that_cannot_be_made_ready_ends_and_says_why(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    """What its lifespan raises, uvicorn takes for one that is not there, and listens.

    This one's vLLM has next to nothing that a server is made ready with.
    """
    serving(Engine())
    (base,) = (tmp_path / "bases").iterdir()
    left = tmp_path / "termination-log"
    left.touch()
    monkeypatch.setenv("ESPALIER_TERMINATION_LOG", str(left))
    configuration = SimpleNamespace(
        volume=tmp_path, base=base.name.replace("-", ":"), adapter_type="Full"
    )
    state = SimpleNamespace(args=SimpleNamespace(espalier_base=verify_base(base)))
    scope = {"type": "lifespan", "app": SimpleNamespace(state=state)}

    def start() -> None:
        spoil(base)
        routes = ControlRoutes(nothing, configuration)  # type: ignore[arg-type]
        asyncio.run(routes(scope, nothing, nothing))  # type: ignore[arg-type]

    assert in_a_fork(start) == FAULT
    assert json.loads(left.read_text())["reason"] == reason


async def test_weights_that_were_changed_while_they_were_loaded_are_not_served(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]],
) -> None:
    engine = Engine()
    subject, models, (a, b) = serving(engine)
    await subject.serve([a])
    engine.meanwhile = Writer(f"sha256-{b.partition('@')[2]}")
    with pytest.raises(ServeError, match=f"was changed after .* {a} stays served"):
        await subject.serve([b])
    assert [path.name for path in models.base_model_paths] == [a]
    await subject.check_health()
    engine.meanwhile = Writer()
    assert (await subject.serve([b])).adapters == [b]


async def test_a_checkpoint_that_is_gone_once_it_was_loaded_leaves_the_weights_before_served(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]],
) -> None:
    engine = Engine()
    subject, models, (a, b) = serving(engine)
    await subject.serve([a])
    engine.meanwhile = Remover(f"sha256-{b.partition('@')[2]}")
    with pytest.raises(ServeError, match=f"{a} stays served"):
        await subject.serve([b])
    assert (engine.paused, [path.name for path in models.base_model_paths]) == (False, [a])


class Remover(Writer):
    """Another process, which removes what is loaded."""

    def __call__(self, files: list[str]) -> None:
        directory = Path(files[0]).parent
        if directory.name.startswith(self._directories):
            shutil.rmtree(directory)


async def test_weights_before_are_not_gone_back_to_where_they_were_changed_since(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]],
) -> None:
    """They would be read a second time, and were hashed before the first."""
    engine = Engine(meanwhile=Writer("sha256-"))
    subject, models, (a, _) = serving(engine)
    with pytest.raises(ServeError) as caught:
        await subject.serve([a])
    assert caught.value.problem.reason == "EngineBroken"
    assert models.base_model_paths == []


async def test_a_base_that_was_changed_since_the_start_is_hashed_again(
    serving: Callable[[Engine], tuple[FullServing, Any, list[str]]], tmp_path: Path
) -> None:
    subject, _, (a, _) = serving(Engine())
    (weights,) = (tmp_path / "bases").glob("*/model.safetensors")
    content = weights.read_bytes()
    await subject.serve([a])
    weights.write_bytes(content)
    assert (await subject.serve([])).base
    await subject.serve([a])
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(ServeError) as refused:
        await subject.serve([])
    assert (refused.value.status, refused.value.problem.reason) == (422, "FileAltered")
    assert (await subject.served()).adapters == [a]
