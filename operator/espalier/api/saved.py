"""Names under which clients of Tinker's API saved weights."""

from __future__ import annotations

from pydantic import Field

from espalier.api.meta import Type

# As many names weights of one checkpoint are saved under.
SAVES_MOST = 64


class Save(Type):
    """A name that a client of Tinker's saved the weights under."""

    path: str = Field(
        description="path of the weights without tinker://, such as "
        "team-a.0123456789abcdef:train:0/weights/000010.",
        max_length=256,
    )
    time: str = Field(
        description="time of the save.", max_length=32, json_schema_extra={"format": "date-time"}
    )
    expires_at: str | None = Field(
        default=None,
        description="expiresAt ends the name, not the checkpoint; for ever if unset.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )
    metadata: str | None = Field(
        default=None, description="metadata of the client, as JSON.", max_length=8192
    )

    def lasts(self, now: str) -> bool:
        """Whether the name still stands at a time, RFC 3339 in UTC to the second."""
        return self.expires_at is None or self.expires_at > now
