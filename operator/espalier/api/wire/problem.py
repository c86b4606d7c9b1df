"""An error as sent to a client: ``{"detail": text, "reason": CamelCase, "remedy": text}``."""

from __future__ import annotations

from espalier.api.wire.base import Wire


class Problem(Wire):
    """An error as sent to a client."""

    detail: str
    reason: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """Detail and remedy as one text, as conditions and messages show them."""
        return f"{self.detail}. {self.remedy}" if self.remedy else self.detail
