"""Text of a model, a task or a user as HTML. All of it is hostile.

No character of it may become markup, and none may change how others are read: controls of the
direction of writing, the ends of lines of other systems and halves of characters are shown by their
numbers.
"""

from __future__ import annotations

import html
import re

# Of one text; more is cut, and the page says so.
CHARS_MOST = 20_000
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def shown(text: str) -> str:
    """The text as content of an element."""
    parts, at = [], 0
    for found in _CONTROL.finditer(text):
        parts.append(html.escape(text[at : found.start()]))
        parts.append(f'<span class="control">{_number(found[0])}</span>')
        at = found.end()
    parts.append(html.escape(text[at:]))
    return "".join(parts)


def attribute(text: str) -> str:
    """The text within the double quotes of an attribute."""
    return html.escape(_CONTROL.sub(lambda found: _number(found[0]), text))


def block(text: str, name: str = "") -> str:
    """A paragraph that keeps its lines and the direction of its writing to itself."""
    kept, left = text[:CHARS_MOST], len(text) - CHARS_MOST
    more = f'<span class="note"> … {left} more characters</span>' if left > 0 else ""
    return f'<div dir="auto" class="text {attribute(name)}">{shown(kept)}{more}</div>'


def _number(character: str) -> str:
    return f"U+{ord(character):04X}"
