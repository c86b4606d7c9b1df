"""Keeps the clients of one model apart: it is trained by one at a time.

The model is the client's that trained last, until that one was quiet for QUIET_SECONDS: no command
came, and none of its results was asked for. Known to this process alone: after a restart the first
to come has the model. Pure, but for the clock that it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from espalier.trainer.problems import CommandError

# Who runs a script again waits no longer than this for the model.
QUIET_SECONDS = 20.0


class OneClient:
    """Whose the model is; a client is known by the session of its commands, its model_id."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._holder = ""
        self._seen = 0.0
        self._polls: Counter[str] = Counter()

    def refusal(self, session: str) -> CommandError | None:
        """Why a client may not train now; None if it may."""
        quiet = 0.0 if self._polls[self._holder] else self._now() - self._seen
        if self._holder in ("", session) or quiet >= QUIET_SECONDS:
            return None
        return CommandError(
            422,
            "AnotherClientTrains",
            f"client {self._holder} trains this model, and was active {quiet:.0f} s ago; nothing "
            "was applied",
            f"Stop that client, and try again when it has been quiet for {QUIET_SECONDS:.0f} s; or "
            "train a model of your own: create_training_client_from_state of a saved state forks "
            "this one",
        )

    def take(self, session: str) -> None:
        """The model is this client's from now on."""
        self._holder, self._seen = session, self._now()

    @contextmanager
    def polls(self, session: str) -> Iterator[None]:
        """While a client waits for a result; it polls again at once."""
        self._polls[session] += 1
        try:
            yield
        finally:
            self._polls[session] -= 1
            if not self._polls[session]:
                # Anybody's: those who ask for what there never was would fill it.
                del self._polls[session]
            if session == self._holder:
                self._seen = self._now()
