"""Runs inside HUD's environment: its command line, one command after the other.

``python commands.py '[["models", "list"], ...]'``; prints [arguments, code, output, errors] lines.
Each command runs in a fork of this process, so that the client is imported only once.
"""

import contextlib
import json
import os
import runpy
import sys
import tempfile

import hud.cli
import hud.cli.models  # noqa: F401


def run(arguments):
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = ["hud", *arguments]
            code = 0
            try:
                runpy.run_module("hud", run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), output.read(), errors.read()


if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        print(json.dumps([command, *run(command)]), flush=True)
