"""A command under way: awaited in asyncio, waited for without it, and safe to ask for again."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from espalier.client.errors import CallPendingError, EarlierCallFailedError

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Progress:
    """Where a call stands.

    Attributes:
        attempts: requests sent so far; 0 while it waits for the calls before it.
        reason: why the last one brought no answer (TrainerNotReady, GatewayUnreachable, …).
        detail: the same in a sentence.
    """

    attempts: int = 0
    reason: str = ""
    detail: str = ""


class Portal:
    """An event loop on a thread of its own, so that one client serves sync and async callers.

    The thread is a daemon and ends with ``close`` or when the portal is collected.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine on the portal's loop."""
        if not self._end.alive:
            work.close()
            raise RuntimeError("the client is closed: make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Ends the thread; what still runs on it is abandoned. Closing twice is fine."""
        if self._end.alive:
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(timeout=5.0)
            self._end()
            self._thread.join(timeout=5.0)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Call(Generic[T]):
    """The result of a command that was submitted, now or later.

    ``await call`` and ``call.result()`` may be used again and again and from any thread or event
    loop: giving up waiting gives up nothing else, the command goes on.

    Attributes:
        key: its idempotency key; what is sent again under it is applied once. Empty for a reading.
    """

    def __init__(self, key: str, earlier: Call[Any] | None = None) -> None:
        self.key = key
        self.progress = Progress()
        self._earlier = earlier if earlier is not None and earlier._holds_back() else None
        # The failed call that this one was skipped for.
        self._blocker: Call[Any] | None = None
        self._future: Future[T] = Future()
        self._seen = False

    def __await__(self) -> Generator[Any, None, T]:
        self._seen = True
        # Shielded: a caller's timeout must not abandon a command that the trainer may have applied.
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Waits in the calling thread, for at most ``timeout`` seconds.

        Raises:
            CallPendingError: it takes longer; ask again.
        """
        try:
            done = self._future.result(timeout)
        except TimeoutError as error:
            if self._future.done():
                self._seen = True
                raise
            raise CallPendingError(self.key, timeout or 0.0, self.progress.reason) from error
        except BaseException:
            self._seen = True
            raise
        self._seen = True
        return done

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._future.done()

    def failed(self) -> bool:
        """Whether it is over and brought an error."""
        return self._future.done() and self._future.exception() is not None

    def start(self, portal: Portal, work: Callable[[Call[T]], Coroutine[Any, Any, T]]) -> None:
        """Runs ``work`` once the calls before it have succeeded."""
        portal.submit(self._run(work)).add_done_callback(self._abandoned)

    async def after_earlier(self) -> None:
        """Waits for the call before this one.

        Raises:
            EarlierCallFailedError: it failed, and nobody knew when this one was submitted.
        """
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        try:
            await asyncio.shield(asyncio.wrap_future(earlier._future))
        except Exception as error:
            self._blocker = earlier._blocker or earlier
            cause = error.__cause__ if isinstance(error, EarlierCallFailedError) else error
            raise EarlierCallFailedError(self._blocker.key) from cause

    def _holds_back(self) -> bool:
        """Whether a call submitted now could build on a failure that nobody has seen."""
        if not self._future.done():
            return True
        if self._blocker is not None:
            return self._blocker._holds_back()
        return not self._seen and self._future.exception() is not None

    async def _run(self, work: Callable[[Call[T]], Coroutine[Any, Any, T]]) -> None:
        try:
            await self.after_earlier()
            done = await work(self)
        except Exception as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(done)

    def _abandoned(self, run: Future[None]) -> None:
        if not self._future.done():
            self._future.set_exception(CancelledError())
