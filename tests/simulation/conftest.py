"""What the simulation leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    """Coroutines of dead processes are closed here and not while Python compiles something.

    CPython 3.11 fails with "AST constructor recursion depth mismatch" when that happens.
    """
    yield
    gc.collect()
