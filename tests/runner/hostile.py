"""A worker whose scorer runs the answer as Python: the worst that a dataset could do.

python -m tests.runner.hostile alone|batch all|seccomp|landlock
"""

from __future__ import annotations

import sys
from typing import Any

from espalier.runner.scorer_spec import Reference, Spec
from espalier.runner.scoring import worker
from espalier.runner.scoring.confinement import Confinement
from espalier.runner.scoring.scorers import Scorer, open_scorer

# What an answer may change and a later one would see.
state = {"poisoned": False}


class Executing:
    """Runs the answer; the reward is what it assigns to ``reward``."""

    def __init__(self, *, evaluates: bool) -> None:
        self.evaluates = evaluates

    def prepare(self, reference: Reference) -> None:
        """Nothing."""

    def score(self, reference: Reference, completion: str) -> object:
        names: dict[str, Any] = {"state": state, "reference": reference}
        exec(completion, names)
        return names["reward"]


def main() -> None:
    how, layers = sys.argv[1:]
    offered = Confinement.offered()
    kept = {
        "all": offered,
        "seccomp": Confinement(0, offered.seccomp),
        "landlock": Confinement(offered.landlock, False),
    }[layers]
    Confinement.offered = classmethod(lambda cls: kept)  # type: ignore[method-assign,assignment]

    def opens(wanted: Spec) -> Scorer:
        return open_scorer(wanted) if how == "dataset" else Executing(evaluates=how == "alone")

    worker.main(opens)


if __name__ == "__main__":
    main()
