"""How to sample: one immutable value, so that no request leaks its overrides into the next."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from espalier.api.sampled import Sampled, sampled
from espalier.client.errors import ConfigurationError


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; None leaves the choice to the server.

    For every parameter alike: what a call says goes before what its phase (training, validation)
    says, and that before these defaults.

    Attributes:
        max_tokens: of one completion; also cut so that prompt and completion fit
            ``max_model_length``.
        temperature: 0 is greedy.
        stop: strings that end a completion; without any the tokenizer's end of sequence does.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()

    def but(self, **overrides: Any) -> Self:
        """A copy with the given parameters; None keeps what is there.

        Raises:
            ConfigurationError: there is no such parameter.
        """
        known = [field.name for field in fields(self)]
        for name in overrides:
            if name not in known:
                raise ConfigurationError(
                    f"{name} is no sampling parameter; there are: {', '.join(known)}"
                )
        given = {name: value for name, value in overrides.items() if value is not None}
        return replace(self, **given)

    def drawn(self) -> Sampled:
        """What a sample's log-probs depend on."""
        return sampled({"temperature": self.temperature, **self.body()})

    def body(self) -> dict[str, Any]:
        """The fields of a chat completion's request, but for ``max_tokens`` and temperature."""
        chosen = {"top_p": self.top_p, "top_k": self.top_k, "stop": list(self.stop) or None}
        return {name: value for name, value in chosen.items() if value is not None}
