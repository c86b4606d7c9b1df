"""The shortcuts of a start on CPU: what they leave behind."""

from __future__ import annotations

import gc
from types import ModuleType

import pytest

from espalier.sampler.cpu import quick_start


def test_garbage_is_collected_again_after_the_imports_even_failed_ones() -> None:
    with pytest.raises(ImportError), quick_start.uncollected():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_a_vllm_that_starts_in_another_way_is_refused() -> None:
    with pytest.raises(AttributeError, match="engine has no fork: this vLLM starts in another way"):
        quick_start.replace(ModuleType("engine"), "fork", len)
