"""Shortens the start of vLLM 0.32 on CPU, which is imports: 15 s of CPU time, and that twice.

Measured in docs/developing/performance.md. Nothing here changes what is served; where vLLM has
other names, the start fails with them.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._inductor.lowering"


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports only make objects that stay: looking for garbage among them costs a tenth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def without_compiler() -> None:
    """Imports vLLM without torch's compiler, 2 s, which it patches and eager mode never asks.

    vLLM leaves the patch out where the compiler cannot be imported.
    """
    sys.modules[COMPILER] = None  # type: ignore[assignment]
    try:
        import vllm  # noqa: F401, PLC0415
    finally:
        del sys.modules[COMPILER]


def inspect_here() -> None:
    """Lets vLLM look at the model's class in this process, as the engine imports it anyway.

    vLLM starts a process for it, 18 s, so that no GPU is initialised before the engine's process.
    """
    from vllm.model_executor.models import registry  # noqa: PLC0415

    replace(registry, "_run_in_subprocess", lambda function: function())


def fork_engine() -> None:
    """Forks the engine's process, so that it inherits the imports of this one, as on GPUs.

    On CPUs vLLM spawns it so that it starts with LD_PRELOAD, which only threads that are bound to
    cores need; the executor ``uni`` binds none. Nothing of this process has computed with torch by
    then: an OpenMP pool would not outlive the fork.
    """
    from vllm.v1.engine import utils  # noqa: PLC0415

    replace(utils, "get_mp_context", lambda: multiprocessing.get_context("fork"))


def replace(module: ModuleType, name: str, function: Callable[..., Any]) -> None:
    """Replaces a function of vLLM.

    Raises:
        AttributeError: there is none of that name.
    """
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name}: this vLLM starts in another way")
    setattr(module, name, function)
