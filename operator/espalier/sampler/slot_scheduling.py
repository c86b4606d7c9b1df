"""Has vLLM's scheduler begin nothing that needs an adapter which is closed (``adapter_slots``).

In the engine, because what runs is known there alone, and what waits can still be held back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vllm.config import SchedulerConfig

from espalier.sampler.adapter_slots import AdapterSlots, Need
from espalier.sampler.turns import CALLER_ARGUMENT


def install() -> None:
    """Replace how vLLM chooses its scheduler; called again it changes nothing."""
    chosen = SchedulerConfig.get_scheduler_cls
    if not getattr(chosen, "slotted", False):

        def with_slots(self: Any) -> Any:
            return slotted(chosen(self))

        with_slots.slotted = True  # type: ignore[attr-defined]
        SchedulerConfig.get_scheduler_cls = with_slots


def slotted(scheduler: Any) -> Any:
    """A class of vLLM's schedulers, in whose steps that which is held back is not there."""

    class Slotted(scheduler):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._adapter_slots = AdapterSlots(self.lora_config.max_loras)

        def schedule(self, *arguments: Any, **named: Any) -> Any:
            held = held_back(self, self._adapter_slots)
            if not held:
                return super().schedule(*arguments, **named)
            self.waiting.remove_requests(held)
            scheduled = super().schedule(*arguments, **named)
            self.waiting.prepend_requests(held)
            return scheduled

    return Slotted


def held_back(scheduler: Any, slots: AdapterSlots) -> list[Any]:
    """The waiting requests that may not begin now; looks closely only where slots are short."""
    adapted = [request for request in scheduler.requests.values() if request.lora_request]
    if len({request.lora_request.lora_int_id for request in adapted}) <= slots.count:
        return []
    if len({_caller(request) for request in adapted}) == 1:
        return []
    # Its own iterator sorts, by requests' slow comparison.
    waiting = scheduler.waiting._heap
    begun = max((request.priority for request in scheduler.running), default=0)
    closed = slots.closed(_needs(scheduler.running), _needs(waiting), begun)
    return [r for r in waiting if r.lora_request and r.lora_request.lora_int_id in closed]


def _needs(requests: Iterable[Any]) -> Iterator[Need]:
    for request in requests:
        if request.lora_request:
            adapter = request.lora_request.lora_int_id
            yield Need(request.priority, request.arrival_time, _caller(request), adapter)


def _caller(request: Any) -> str:
    """Who sent it; empty for a request that did not pass ``turns``, as one that pools."""
    told = getattr(request.sampling_params, "extra_args", None) or {}
    return str(told.get(CALLER_ARGUMENT, ""))
