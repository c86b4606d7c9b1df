"""The logs of a process: one JSON object a line, order kept, and nobody waits for the reader."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from espalier.kube.objects import ObjectKey
from espalier.process import CLOSE_SECONDS, UNREAD_LINES, JsonFormatter

START = """
import asyncio, logging, time
from espalier import process
process.configure_logs()
logger = logging.getLogger("espalier.test")
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(errors: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in errors.splitlines()]


def record(
    message: str = "m", *arguments: object, extra: dict[str, Any] | None = None, info: Any = None
) -> logging.LogRecord:
    logger = logging.getLogger("espalier.test")
    return logger.makeRecord(
        logger.name, logging.INFO, __file__, 1, message, arguments, info, extra=extra
    )


@pytest.mark.parametrize("extra", [{}, {"run": "default/arith-20", "step": 3}])
def test_a_line_is_one_json_object_with_the_extra_fields(extra: dict[str, Any]) -> None:
    line = JsonFormatter().format(record("step %d\ndone", 3, extra=extra))
    assert "\n" not in line
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry.pop("time"))
    assert entry == {
        "level": "INFO",
        "logger": "espalier.test",
        "message": "step 3\ndone",
        **extra,
    }


def test_a_line_carries_the_traceback() -> None:
    try:
        raise RuntimeError("a fault")
    except RuntimeError:
        info = sys.exc_info()
    entry = json.loads(JsonFormatter().format(record(info=info)))
    assert "RuntimeError: a fault" in entry["traceback"]


def test_a_line_names_its_object() -> None:
    fields = ObjectKey("CheckpointHead", "default", "tiny").fields()
    entry = json.loads(JsonFormatter().format(record(extra=fields)))
    object_ = ("CheckpointHead", "default", "tiny")
    assert (entry["kind"], entry["namespace"], entry["name"]) == object_


@pytest.mark.parametrize("ending", ["", "process.end(0)", "raise SystemExit(0)"])
def test_a_process_that_ends_has_written_every_line_in_order(ending: str) -> None:
    child = start(f"for number in range(3000): logger.info('%d', number)\n{ending}")
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0
    assert [entry["message"] for entry in lines(errors)] == [str(n) for n in range(3000)]


def test_a_loop_goes_on_while_nobody_reads_and_what_is_left_out_is_counted() -> None:
    total = 3 * UNREAD_LINES
    child = start(f"""
async def main():
    for number in range({total}):
        logger.info("%s", number)
        await asyncio.sleep(0)
    print("done", flush=True)
asyncio.run(main())
time.sleep(2)
logger.info("last")
""")
    assert child.stdout is not None
    # The child logs all of it, far more than a pipe holds, before anybody reads.
    assert child.stdout.readline() == "done\n"
    _, errors = child.communicate(timeout=60)
    written = lines(errors)
    (gap,) = [entry for entry in written if entry["logger"] == "espalier.process"]
    numbers = [int(entry["message"]) for entry in written if entry["message"].isdecimal()]
    assert numbers == sorted(numbers)
    left_out = int(gap["message"].split()[0])
    assert gap["level"] == "WARNING"
    assert len(numbers) + left_out == total
    assert len(numbers) >= UNREAD_LINES
    assert written[-1]["message"] == "last"


def test_a_process_ends_though_nobody_reads() -> None:
    child = start("for number in range(3000): logger.info('%d', number)\nprint(1, flush=True)")
    assert child.stdout is not None
    child.stdout.readline()
    assert child.wait(CLOSE_SECONDS + 30) == 0
    child.communicate()


def test_a_process_whose_reader_is_gone_goes_on() -> None:
    child = start("""
logger.info("first")
time.sleep(0.5)
for number in range(3000): logger.info("%d", number)
print("done", flush=True)
""")
    assert child.stderr is not None
    child.stderr.readline()
    child.stderr.close()
    assert child.stdout is not None
    assert child.stdout.readline() == "done\n"
    assert child.wait(60) == 0
    child.stdout.close()
