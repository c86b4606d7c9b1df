"""Asks importers periodically for their progress."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import aiohttp

from espalier.api.wire.import_state import IMPORT_PROGRESS, ImportState
from espalier.controllers.peers.peer import Peer, PeerCalls, PeerError
from espalier.core.pods.pods import Pod
from espalier.identity import Signer

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
# Each answer is a write of the model's status.
ASK_SECONDS = 15.0


class ImporterError(PeerError):
    """The importer did not answer, or its answer breaks the protocol."""


class Importer(Protocol):
    """The importer's only route."""

    async def progress(self, peer: Peer) -> ImportState:
        """The progress of the import; ImporterError without a valid answer."""


class ImporterClient:
    """Importer over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, signer: Signer) -> None:
        self._calls = PeerCalls(session, signer, "Importer", ImporterError)

    async def progress(self, peer: Peer) -> ImportState:
        """See Importer."""
        return await self._calls.call(
            "GET", peer, IMPORT_PROGRESS, ImportState, seconds=ANSWER_SECONDS
        )


class Imports:
    """The last answers of importers, by model."""

    def __init__(self, client: Importer) -> None:
        self._client = client
        # When it was asked, the pod, and its answer.
        self._answers: dict[tuple[str, str], tuple[float, str, ImportState | None]] = {}

    async def look(
        self, namespace: str, model: str, pod: Pod | None
    ) -> tuple[ImportState | None, float | None]:
        """The progress of the importer in this pod, and in how many seconds to ask again.

        None where it does not say: that never holds an import up.
        """
        if pod is None:
            self._answers.pop((namespace, model), None)
            return None, None
        now = asyncio.get_running_loop().time()
        answer = self._answers.get((namespace, model))
        if (
            answer is not None
            and answer[1] == pod.uid
            and (left := ASK_SECONDS - (now - answer[0])) > 0
        ):
            return answer[2], left
        state = None
        try:
            state = await self._client.progress(Peer.of(namespace, model, pod))
        except ImporterError as error:
            logger.info("progress of %s/%s: %s", namespace, model, error)
        self._answers[namespace, model] = (now, pod.uid, state)
        return state, ASK_SECONDS
