"""Prints requests that schemathesis makes of an OpenAPI document, a JSON object a line.

    python from_schemas.py DOCUMENT REQUESTS SEED

Runs in an environment of its own, which has schemathesis and nothing of ours. A half of each
operation's requests fit their schemas, the other half do not. One seed gives the same requests.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
import schemathesis.openapi
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

URL = "http://part"
# Not of the request, but of schemathesis.
LEFT_OUT = {"X-Schemathesis-TestCaseId", "User-Agent", "Connection", "Content-Length"}


def cases(operation: Any, mode: Any, most: int, number: int) -> Iterator[Any]:
    """At most so many: an operation without a body has few that differ."""
    made: list[Any] = []

    @seed(number)
    @settings(
        max_examples=most,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def take(case: Any) -> None:
        made.append(case)

    # Raised where nothing of this operation can be wrong.
    with suppress(Unsatisfiable):
        take()
    yield from made[:most]


def told(case: Any, mode: Any) -> dict[str, Any] | None:
    """The request; None where no client could send it."""
    try:
        sent = requests.Request(**case.as_transport_kwargs(base_url=URL)).prepare()
    except (ValueError, OSError):
        return None
    body = sent.body or b""
    return {
        "kind": "fits its schema" if mode is GenerationMode.POSITIVE else "does not fit its schema",
        "method": sent.method,
        "path": sent.path_url,
        "headers": {k: str(v) for k, v in sent.headers.items() if k not in LEFT_OUT},
        "body": base64.b64encode(body.encode() if isinstance(body, str) else body).decode(),
    }


def main() -> None:
    document, count, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    schema = schemathesis.openapi.from_dict(json.loads(document.read_text()))
    operations = [found.ok() for found in schema.get_all_operations()]
    # Those without a body differ in few ways: those with one make up for them.
    operations.sort(key=lambda operation: bool(list(operation.body)))
    left = count
    for at, operation in enumerate(operations):
        each = max(1, -(-left // (2 * (len(operations) - at))))
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if not left:
                return
            for case in cases(operation, mode, min(each, left), number):
                if (line := told(case, mode)) is not None:
                    print(json.dumps(line))
                    left -= 1


if __name__ == "__main__":
    main()
