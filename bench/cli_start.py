"""What the command line takes to start: CPU seconds to import it, beside Python's own start.

python -m bench.cli_start [--times 20]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from statistics import median


def cpu_seconds(code: str, times: int) -> float:
    """The median of user and system time of fresh processes that run the code."""
    taken = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(taken)


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    # The first run of each writes what Python compiles.
    cpu_seconds("import espalier.cli.main", 1)
    print(f"python {cpu_seconds('pass', times):.3f} CPU-s")
    print(f"espalier {cpu_seconds('import espalier.cli.main', times):.3f} CPU-s")


if __name__ == "__main__":
    main()
