"""What is sent: requests that schemathesis makes of a document, in turns with our own list."""

from __future__ import annotations

import base64
import itertools
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.fuzzing.openapi import Routes, Schema
from tests.security.hostile_requests import Hostile, Tree, requests

ROOT = Path(__file__).resolve().parents[2]
SCHEMATHESIS = "schemathesis==4.32.5"
AT_A_TIME = 500
SEED = 1


def of_schemathesis(document: Schema, count: int, scratch: Path) -> list[Hostile]:
    """Requests that schemathesis makes of an OpenAPI document, in an environment of its own."""
    packages = ROOT / "dev" / "packages.sh"
    made = subprocess.run([packages, SCHEMATHESIS], check=True, stdout=subprocess.PIPE, text=True)
    file = scratch / "openapi.json"
    file.write_text(json.dumps(document))
    program = str(ROOT / "bench" / "fuzzing" / "from_schemas.py")
    command = [made.stdout.strip(), program, str(file), str(count), str(SEED)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = [
        Hostile(
            one["method"],
            one["path"],
            one["headers"],
            base64.b64decode(one["body"]),
            (one["kind"],),
        )
        for one in map(json.loads, lines.splitlines())
    ]
    # They come an operation at a time.
    random.Random(SEED).shuffle(found)
    return found


def lots(
    routes: Routes, bodies: Sequence[Tree], made: list[Hostile], count: int
) -> Iterator[list[Hostile]]:
    """So many requests, the made ones and our own in turns, a lot at a time."""
    own = requests(routes, bodies, count - len(made), SEED)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(made, own))
    left = [one for one in mixed if one is not None]
    for at in range(0, len(left), AT_A_TIME):
        yield left[at : at + AT_A_TIME]
