"""What environments have in common whose tasks are drawn from the taskset's seed."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from espalier.api.run.environment_sources import Calculator, Game2048
from espalier.api.run.taskset import Taskset
from espalier.environments.digest import taskset_digest
from espalier.environments.tasks import Message, system

Source = TypeVar("Source", bound=Calculator | Game2048)


class Generated(Generic[Source]):
    """As many tasks as are declared; nothing has to be opened.

    Attributes:
        NAME: of the source, in the digest of its tasks.
        VERSION: a change of the rules or of the words is another taskset.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int]

    def __init__(self, spec: Taskset, source: Source) -> None:
        self._spec = spec
        self._source = source
        self._by_tool = source.protocol == "ToolCall"

    @property
    def size(self) -> int:
        """As many as are declared."""
        return self._spec.size

    @property
    def digest(self) -> str:
        """Of the generator: version, seed, size, fields."""
        made_by = {self.NAME: self.VERSION, "seed": self._spec.seed, "size": self.size}
        return taskset_digest([made_by, self._source.wire(), self._spec.system_prompt])

    @property
    def timeout_seconds(self) -> float:
        """Of one rollout."""
        return self._source.timeout_seconds

    async def ready(self) -> dict[str, Any]:
        """Nothing has to be opened."""
        return {}

    async def close(self) -> None:
        """Nothing is open."""

    def _asked(self, content: str) -> tuple[Message, ...]:
        """The messages that a rollout begins with."""
        return (*system(self._spec), Message("user", content))
