"""Keeps the clients of one model apart: Tinker's train it one at a time, and not beside others.

The model is the client's that trained last, until that one was quiet for QUIET_SECONDS: no command
came, and none of its results was asked for. A client of which nothing was applied has not trained:
once its commands have failed the model is nobody's again. Known to this process alone: after a
restart the first to come has the model. Pure, but for the clock that it is given.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from espalier.trainer.problems import CommandError

# Who runs a script again waits no longer than this for the model.
QUIET_SECONDS = 20.0
# All clients but Tinker's, which may be several processes: their commands name a session each, or
# none.
OTHERS = ""


@dataclass
class Tenure:
    """A client's time with the model.

    Attributes:
        client: whose it is.
        run: that was trained when it was last claimed; empty before the first assignment.
        seen: when the client was last active.
        waiting: commands that claimed it and are neither applied nor refused.
        trained: whether one of them was applied.
    """

    client: str
    run: str
    seen: float
    waiting: int = 0
    trained: bool = False


class OneClient:
    """Whose the model is. Tinker's client is known by its model_id, all others are ``OTHERS``.

    It is asked on the event loop and on the engine's thread.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        # None while the model is nobody's.
        self._tenure: Tenure | None = None
        self._busy: Counter[str] = Counter()

    def claim(self, client: str, run: str) -> Tenure:
        """Takes the model for a command of a client; ``end`` says what became of the command.

        A run that begins is nobody's yet, so a model is free once it is trained by another run.

        Raises:
            CommandError: another client trains the model.
        """
        with self._lock:
            held, now = self._tenure, self._now()
            if held is None or held.client != client:
                if held is not None and held.run in ("", run):
                    quiet = 0.0 if self._busy[held.client] else now - held.seen
                    if quiet < QUIET_SECONDS:
                        raise _refusal(held.client, client, quiet)
                held = self._tenure = Tenure(client, run, now)
            held.run, held.seen = run, now
            held.waiting += 1
            return held

    def end(self, tenure: Tenure, *, applied: bool) -> None:
        """A command that claimed the model was applied, or failed."""
        with self._lock:
            tenure.waiting -= 1
            tenure.trained |= applied
            if tenure is self._tenure and not tenure.trained and not tenure.waiting:
                self._tenure = None

    @contextmanager
    def training(self, client: str, run: str) -> Iterator[None]:
        """While a command of a client that has the model is applied; as ``claim`` it may raise."""
        tenure, applied = self.claim(client, run), False
        try:
            yield
            applied = True
        finally:
            self.end(tenure, applied=applied)

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
            if self._tenure is not None and client == self._tenure.client:
                self._tenure.seen = self._now()


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
