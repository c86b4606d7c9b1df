"""The sampled tokens of a completion, coloured by the log-prob that the sampler gave them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from espalier.rollout_page.text import attribute, shown

# Lowest probability of each colour, likeliest first; the last takes the rest.
LIKELY = (0.9, 0.5, 0.2, 0.05, 0.01)


def colour(logprob: float) -> int:
    """The number of the colour: 0 for what was nearly certain, 5 for what was below 1 %."""
    likely = math.exp(min(0.0, logprob))
    return next((n for n, lowest in enumerate(LIKELY) if likely >= lowest), len(LIKELY))


def tokens(record: Mapping[str, Any]) -> str | None:
    """The tokens as HTML; None where the record holds none that match their log-probs."""
    texts = _all(record.get("token_texts"), str)
    logprobs = _all(record.get("logprobs"), (int, float))
    if texts is None or logprobs is None or len(texts) != len(logprobs):
        return None
    spans = [_token(text, float(value)) for text, value in zip(texts, logprobs, strict=True)]
    left = record.get("tokens")
    cut = left - len(texts) if isinstance(left, int) else 0
    note = f'<span class="note"> … {cut} more tokens</span>' if cut > 0 else ""
    return f'<div dir="auto" class="text tokens">{"".join(spans)}{note}</div>'


def legend() -> str:
    """What each colour means."""
    bounds = [f"≥ {lowest:.0%}" for lowest in LIKELY] + [f"< {LIKELY[-1]:.0%}"]
    marks = [f'<span class="p{n}">{bound}</span>' for n, bound in enumerate(bounds)]
    return f'<p class="legend">probability of a token to its sampler: {" ".join(marks)}</p>'


def _token(text: str, logprob: float) -> str:
    likely = math.exp(min(0.0, logprob))
    said = attribute(f"log-prob {logprob:.4g}, probability {likely:.3g}")
    return f'<span class="p{colour(logprob)}" title="{said}">{_visible(text)}</span>'


def _visible(text: str) -> str:
    """A token that is nothing to see, such as a special one without text, still has its place."""
    return shown(text.replace("\n", "⏎\n")) if text else "∅"


def _all(value: Any, kind: type | tuple[type, ...]) -> list[Any] | None:
    """The list, if it is one of values of that kind."""
    if not isinstance(value, list):
        return None
    fit = all(isinstance(one, kind) and not isinstance(one, bool) for one in value)
    return value if fit else None
