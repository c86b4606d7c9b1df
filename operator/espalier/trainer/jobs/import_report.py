"""What an importer says of what it brought, in a file that ``place`` reads and believes no further.

How large the files are, and what their bytes are, is not in it: ``place`` looks for itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, StringConstraints

from espalier.api.source import TurnEnd
from espalier.api.wire.base import Wire
from espalier.trainer.jobs.import_order import REPORT
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume.base_files import Facts
from espalier.trainer.volume.durable_files import write_file
from espalier.trainer.volume.staged_files import MOST_FILES, StrangeFileError, read_small
from espalier.untrusted import UnreadableError, read_model

MOST_BYTES = 4 << 20
Number = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class ReportedTurnEnd(Wire):
    """See ``api.source.TurnEnd``."""

    token: Annotated[str, StringConstraints(max_length=64)]
    token_id: Number


class ImportReport(Wire):
    """The facts about a base, what its source promises of its files, and an adapter's modules.

    ``promised`` are SHA-256 by file; ``target_modules`` is None without an adapter.
    """

    context_tokens: Annotated[Number, Field(ge=1)] | None = None
    chat_template: Literal["Present", "Missing"]
    unstopped_turn_end: ReportedTurnEnd | None = None
    promised: Annotated[dict[FileName, Sha256], Field(max_length=MOST_FILES)] = Field(
        default_factory=dict
    )
    target_modules: Annotated[list[Module], Field(min_length=1, max_length=1000)] | None = None

    @classmethod
    def of(
        cls, facts: Facts, promised: dict[str, str], target_modules: list[str] | None
    ) -> ImportReport:
        """The report of an importer; ValueError for facts that no model of ours can have."""
        end = facts.unstopped
        return cls(
            context_tokens=facts.context_tokens,
            chat_template="Present" if facts.chat_template else "Missing",
            unstopped_turn_end=ReportedTurnEnd(token=end.token, token_id=end.token_id)
            if end
            else None,
            promised=promised,
            target_modules=target_modules,
        )

    @property
    def turn_end(self) -> TurnEnd | None:
        """The same as a model's status has it."""
        end = self.unstopped_turn_end
        return TurnEnd(token=end.token, token_id=end.token_id) if end else None

    def write(self, staging: Path) -> None:
        """Leaves it beside what it is about."""
        write_file(staging / REPORT, self.model_dump_json(exclude_none=True).encode())

    @classmethod
    def read(cls, staging: Path) -> ImportReport:
        """What an importer left; refused if it is no such report."""
        try:
            return read_model(cls, read_small(staging, REPORT, MOST_BYTES))
        except (StrangeFileError, UnreadableError) as error:
            raise refused(f"the importer's report is none: {error}") from error


def refused(detail: str) -> UserMistakeError:
    """The importer brought what no importer of ours brings."""
    return UserMistakeError(
        "ImportRefused",
        detail,
        "find out who wrote it: the files of the source have taken over the importer that opened "
        "them, or somebody else writes the claim; import from a source that you trust",
    )
