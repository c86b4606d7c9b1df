"""How far an import is, as its Job tells the operator."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from espalier.api.wire.base import Wire

IMPORT_PROGRESS = "/progress"
Bytes = Annotated[int, Strict(), Field(ge=0, le=2**62)]


class ImportState(Wire):
    """How far an import is."""

    done_bytes: Bytes
    total_bytes: Bytes
    bytes_per_second: Bytes
