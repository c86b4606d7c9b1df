"""A repository of the Hugging Face hub, named at one commit."""

from __future__ import annotations

from dataclasses import dataclass

from espalier.trainer.problems import UserMistakeError


@dataclass(frozen=True)
class Repository:
    """A repository at a commit; ``field`` is the setting that names it, for messages."""

    name: str
    revision: str
    field: str

    @classmethod
    def parse(cls, text: str, field: str) -> Repository:
        """Parses ``OWNER/NAME@REVISION``."""
        name, _, revision = text.partition("@")
        if not revision:
            raise UserMistakeError(
                "BaseUnreadable", f"{text} names no revision", "use OWNER/NAME@REVISION"
            )
        return cls(name, revision, field)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"
