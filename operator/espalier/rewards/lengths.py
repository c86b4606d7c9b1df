"""What long completions are worth. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from espalier.api.meta import decimal
from espalier.api.run.overlong import LengthPenalty, Overlong
from espalier.api.run.rewards import LENGTH, OVERLONG


@dataclass(frozen=True)
class LengthRules:
    """The rules of a run.

    Attributes:
        max_tokens: at which a completion is cut.
    """

    max_tokens: int
    overlong: Overlong = field(default_factory=Overlong)
    penalty: LengthPenalty | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Of the parts that the rules add, by name."""
        found = {OVERLONG: 1.0} if self.overlong.policy == "SoftPenalty" else {}
        return found | ({LENGTH: decimal(self.penalty.coefficient)} if self.penalty else {})

    def parts(self, tokens: int) -> Mapping[str, float]:
        """What the rules add to the parts of a completion of so many tokens: 0 or below."""
        found: dict[str, float] = {}
        if self.overlong.policy == "SoftPenalty":
            found[OVERLONG] = soft_penalty(tokens, self.max_tokens, self.overlong.buffer_tokens)
        if self.penalty is not None:
            found[LENGTH] = excess(tokens, self.penalty.target_tokens)
        return found


def soft_penalty(tokens: int, longest: int, buffer: int | None) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), from 0 to -1."""
    if not buffer:
        raise ValueError("overlong.policy SoftPenalty needs bufferTokens")
    beyond = tokens - (longest - buffer)
    return -min(max(beyond, 0), buffer) / buffer


def excess(tokens: int, target: int) -> float:
    """The tokens beyond the target as a share of it, below 0; 0 for a completion within it."""
    return -max(tokens - target, 0) / target
