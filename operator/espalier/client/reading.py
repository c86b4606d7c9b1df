"""What a client asks of a model without training it: its state, its tree, its head, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.declared import Declared
from espalier.api.wire.trainer import TrainerState
from espalier.client.answers import CheckpointResponse
from espalier.client.call import Call
from espalier.client.command_queue import CommandClient
from espalier.client.completion import Completion
from espalier.client.gateway import Message


class ReadingClient(CommandClient):
    """The calls that add no gradient. See ``TrainingClient``."""

    def state(self) -> Call[TrainerState]:
        """Where the trainer stands: term, step, cursor."""
        return self._run(self._gateway.state)

    def batch(self) -> Call[BatchLeft | None]:
        """What is left of the batch that the latest step came from, as ``optim_step`` kept it."""
        return self._run(self._gateway.batch)

    def declared(self) -> Call[Declared | None]:
        """What the run in Git binds this client's commands to; None for nothing."""
        return self._run(self._gateway.declared)

    def available_losses(self) -> Call[list[str]]:
        """Names that ``forward_backward`` takes as ``loss_fn``."""
        return self._run(self._gateway.losses)

    def checkpoints(self) -> Call[list[CheckpointResponse]]:
        """The model's checkpoints, oldest first."""
        return self._run(self._gateway.checkpoints)

    def head(self) -> Call[CheckpointResponse | None]:
        """The checkpoint that the slug serves; None: the base."""

        async def active() -> CheckpointResponse | None:
            found = await self._gateway.checkpoints()
            return next((checkpoint for checkpoint in found if checkpoint.is_active), None)

        return self._run(active)

    def set_head(self, checkpoint_id: str) -> Call[None]:
        """Rolls back, or starts a branch: the next step's parent is this checkpoint."""
        return self._run(lambda: self._gateway.set_head(checkpoint_id))

    def sample(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[list[Completion]]:
        """Completions of a chat with their tokens and log-probs; ``extra``: more request fields."""
        return self._run(
            lambda: self._gateway.sample(
                messages,
                checkpoint=checkpoint,
                count=count,
                temperature=temperature,
                max_tokens=max_tokens,
                extra=extra,
            )
        )

    def tokenize(self, text: str) -> Call[list[int]]:
        """The tokens of a text by the model's own tokenizer."""
        return self._run(lambda: self._gateway.tokenize(text))
