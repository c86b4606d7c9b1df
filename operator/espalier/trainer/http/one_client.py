"""Keeps the clients of one model apart: Tinker's train it one at a time, and not beside others.

The model is the client's that trained last, until that one was quiet for QUIET_SECONDS: no command
came, and none of its results was asked for. Known to this process alone: after a restart the first
to come has the model. Pure, but for the clock that it is given.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from espalier.trainer.problems import CommandError

# Who runs a script again waits no longer than this for the model.
QUIET_SECONDS = 20.0
# All clients but Tinker's, which may be several processes: their commands name a session each, or
# none.
OTHERS = ""


class OneClient:
    """Whose the model is. Tinker's client is known by its model_id, all others are ``OTHERS``.

    It is asked on the event loop and on the engine's thread.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        # None while nobody has trained; the run is empty before the first assignment.
        self._holder: str | None = None
        self._run = ""
        self._seen = 0.0
        self._busy: Counter[str] = Counter()

    def claim(self, client: str, run: str) -> CommandError | None:
        """Takes the model for a client; why it may not train now, if another one has it.

        A run that begins is nobody's yet, so a model is free once it is trained by another run.
        """
        with self._lock:
            quiet = 0.0 if self._busy[self._holder or OTHERS] else self._now() - self._seen
            same = self._run in ("", run)
            if self._holder not in (None, client) and same and quiet < QUIET_SECONDS:
                return _refusal(self._holder or OTHERS, client, quiet)
            self._holder, self._run, self._seen = client, run, self._now()
            return None

    @contextmanager
    def busy(self, client: str) -> Iterator[None]:
        """While a client waits for an answer; it comes again at once."""
        self._busy[client] += 1
        try:
            yield
        finally:
            self._busy[client] -= 1
            if not self._busy[client]:
                # Sessions come and go as long as the trainer lives.
                del self._busy[client]
            if client == self._holder:
                self._seen = self._now()


def _refusal(holder: str, client: str, quiet: float) -> CommandError:
    who = f"client {holder}" if holder else "a client of HUD's API or Espalier's own"
    own = (
        "train a fork of this one"
        if client == OTHERS
        else "train a model of your own: create_training_client_from_state of a saved state forks "
        "this one"
    )
    return CommandError(
        409,
        "AnotherClientTrains",
        f"{who} trains this model, and was active {quiet:.0f} s ago; nothing was applied",
        f"Stop that client, and try again when it has been quiet for {QUIET_SECONDS:.0f} s; or "
        f"{own}",
    )
