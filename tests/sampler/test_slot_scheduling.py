"""What vLLM's scheduler holds back, of requests that others than our server may have added."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from espalier.sampler.adapter_slots import AdapterSlots


def request(adapter: int, params: object) -> Any:
    return SimpleNamespace(
        lora_request=SimpleNamespace(lora_int_id=adapter),
        sampling_params=params,
        priority=0,
        arrival_time=adapter,
    )


@pytest.mark.parametrize("pools", [True, False])
def test_a_request_without_a_caller_is_scheduled_as_of_one_more_caller(pools: bool) -> None:
    """An exception in its scheduler would end the engine."""
    # Here, so that no other worker imports vLLM.
    from vllm import SamplingParams

    from espalier.sampler.slot_scheduling import held_back

    told = SamplingParams(extra_args={"espalier_caller": "a"})
    waiting = [request(1, told), request(2, None if pools else SamplingParams())]
    scheduler = SimpleNamespace(
        requests=dict(enumerate(waiting)), running=[], waiting=SimpleNamespace(_heap=waiting)
    )
    assert held_back(scheduler, AdapterSlots(1)) == [waiting[1]]
