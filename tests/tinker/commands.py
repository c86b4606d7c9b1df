"""Tinker's command line as its users call it. Runs in the SDK's environment.

``python commands.py JSON`` with a list of command lines, one list of arguments each; prints of each
its exit code, its output and its errors as a JSON object, one a line.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

from tinker.cli.__main__ import main


def run(arguments: list[str]) -> dict[str, object]:
    """What a command line comes to."""
    sys.argv = ["tinker", *arguments]
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return {"code": code, "output": output.getvalue(), "errors": errors.getvalue()}


if __name__ == "__main__":
    for line in json.loads(sys.argv[1]):
        print(json.dumps(run(line)), flush=True)
