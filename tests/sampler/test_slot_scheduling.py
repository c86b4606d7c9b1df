"""What vLLM's scheduler holds back, of requests that others than our server may have added."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from espalier.sampler.adapter_slots import AdapterSlots
from espalier.sampler.slot_scheduling import held_back

pytestmark = pytest.mark.vllm


def request(adapter: int, params: SamplingParams | None) -> Any:
    return SimpleNamespace(
        lora_request=SimpleNamespace(lora_int_id=adapter),
        sampling_params=params,
        priority=0,
        arrival_time=adapter,
    )


@pytest.mark.parametrize("params", [None, SamplingParams()], ids=["pooled", "without arguments"])
def test_a_request_without_a_caller_is_scheduled_as_of_one_more_caller(
    params: SamplingParams | None,
) -> None:
    """An exception in its scheduler would end the engine."""
    told = SamplingParams(extra_args={"espalier_caller": "a"})
    waiting = [request(1, told), request(2, params)]
    scheduler = SimpleNamespace(
        requests=dict(enumerate(waiting)), running=[], waiting=SimpleNamespace(_heap=waiting)
    )
    assert held_back(scheduler, AdapterSlots(1)) == [waiting[1]]
