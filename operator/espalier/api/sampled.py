"""How a completion was sampled, as far as its log-probs depend on it.

The trainer computes a token's log-prob under the whole softmax at the sampled temperature. What
cuts or shifts that distribution (``top_p``, a penalty, a grammar) leaves the sampler's log-prob of
another one, and the ratio of the two compares no policies. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Marks the entry of ``prompt_chunks`` that says how a sample was drawn. HUD's agent takes chunks
# from an answer and its trainer sends them back beside the tokens, as they came; it has no other
# field that would travel so.
CHUNK = "sampling"
# vLLM samples greedily below the first; it raises temperatures in between to the second.
GREEDY_BELOW = 1e-5
LOWEST_TEMPERATURE = 1e-2


@dataclass(frozen=True)
class Sampled:
    """Temperature (0: greedy), and the request's fields that changed the distribution."""

    temperature: float = 1.0
    shifted_by: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether a sample that says nothing is taken for such a one."""
        return self == Sampled()

    def chunk(self) -> dict[str, Any]:
        """As an entry of ``prompt_chunks``."""
        return {"type": CHUNK, "temperature": self.temperature, "shifted_by": [*self.shifted_by]}


def sampled(request: Mapping[str, Any]) -> Sampled:
    """How vLLM samples for a request's body; bodies that vLLM refuses do not matter."""
    given = _number(request.get("temperature"))
    temperature = 1.0 if given is None else given
    if temperature < GREEDY_BELOW:
        temperature = 0.0
    elif temperature < LOWEST_TEMPERATURE:
        temperature = LOWEST_TEMPERATURE
    return Sampled(temperature, tuple(_shifting(request)))


def _number(value: Any) -> float | None:
    """The number as vLLM reads it, also from a text; None if there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _other_than(*neutral: float) -> Callable[[Any], bool]:
    return lambda value: _number(value) not in neutral


def _any(_value: Any) -> bool:
    return True


# Fields that change the distribution, and whether a value of them does.
_SHIFTING: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: _number(value) is None,
    "top_p": _other_than(1),
    "top_k": _other_than(0, -1),
    "min_p": _other_than(0),
    "repetition_penalty": _other_than(1),
    "presence_penalty": _other_than(0),
    "frequency_penalty": _other_than(0),
    "min_tokens": _other_than(0),
    "logit_bias": bool,
    "bad_words": bool,
    "allowed_token_ids": _any,
    "thinking_token_budget": _any,
    "use_beam_search": bool,
    "structured_outputs": bool,
    "response_format": lambda value: not isinstance(value, dict) or value.get("type") != "text",
}


def _shifting(request: Mapping[str, Any]) -> list[str]:
    found = []
    for name, shifts in _SHIFTING.items():
        value = request.get(name)
        if value is not None and shifts(value):
            number = None if isinstance(value, bool) else _number(value)
            found.append(name if number is None else f"{name} {number:.6g}")
    forced = _forced(request)
    return [*found, forced] if forced else found


def _forced(request: Mapping[str, Any]) -> str:
    """What makes a grammar of tools: a call that must be made, or its exact form."""
    tools, choice = request.get("tools"), request.get("tool_choice", "auto")
    if not isinstance(tools, list) or not tools or choice in ("none", None):
        return ""
    if choice != "auto":
        return f"tool_choice {choice}" if isinstance(choice, str) else "tool_choice of a function"
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    if any(isinstance(one, dict) and one.get("strict") is True for one in functions):
        return "strict of a tool"
    return "parallel_tool_calls false" if request.get("parallel_tool_calls") is False else ""
