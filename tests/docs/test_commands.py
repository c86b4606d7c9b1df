"""The commands that the documents show exist, with the options that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.docs.test_links import HAND_WRITTEN, ROOT, name

from espalier.cli.main import app

COMMANDS = typer.main.get_command(app)
FENCED = re.compile(r"^ *```.*?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:kubectl )?espalier [^`\n]+)`")
CALL = re.compile(r"^(?:kubectl )?espalier (?P<arguments>.+)$")
TARGET = re.compile(r"`make ([a-z-]+)`|^(?:\$ )?make ([a-z-]+)", re.MULTILINE)


def shown(page: Path) -> Iterator[str]:
    """What a page shows after ``espalier``, in blocks and in the text."""
    text = page.read_text()
    lines = [
        line.removeprefix("$ ") for block in FENCED.findall(text) for line in block.splitlines()
    ]
    for line in [*lines, *INLINE.findall(text)]:
        for part in line.split("; "):
            if call := CALL.match(part.strip()):
                # A comment, or a placeholder for more.
                yield re.split(r"\s+#| \| |…", call["arguments"])[0]


def wrong(arguments: str) -> str:
    """What is wrong with a call: an option that its command lacks, or no such command."""
    words = shlex.split(arguments.replace("[", " ").replace("]", " ").replace("\\|", " "))
    command: Any = COMMANDS
    known: set[str] = {"--help"}
    for word in words:
        known |= {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        children = getattr(command, "commands", {})
        if word.startswith("-"):
            if word.partition("=")[0] not in known:
                return f"{word} of espalier {arguments}"
        elif word in children:
            command = children[word]
        elif children and not _is_value(word, words):
            return f"espalier {arguments}"
    return ""


def _is_value(word: str, words: list[str]) -> bool:
    """Whether a word is the value of the option before it."""
    at = words.index(word)
    return at > 0 and words[at - 1] in {"-n", "--namespace", "--local"}


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    assert [said for said in map(wrong, shown(page)) if said] == []


def test_commands_are_found_and_a_wrong_one_is_seen() -> None:
    calls = [call for page in HAND_WRITTEN for call in shown(page)]
    assert len(calls) > 40
    assert "run why arith-20" in calls
    assert wrong("run whi arith") == "espalier run whi arith"
    assert wrong("run why arith --loud") == "--loud of espalier run why arith --loud"
    assert wrong("-n ml run why arith") == ""


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {first or second for first, second in TARGET.findall(page.read_text())}
    assert named - targets == set()
