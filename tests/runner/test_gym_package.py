"""reasoning_gym without matplotlib, as every runner and scorer imports it."""

from __future__ import annotations

import subprocess
import sys

CHECKED = """
import sys
from espalier.runner.gym_package import gym

assert not [name for name in sys.modules if name.startswith(("matplotlib", "mpl_toolkits"))]
for name in ("game_of_life", "game_of_life_halting"):
    dataset = gym.create_dataset(name, seed=1, size=1)
    assert dataset.score_answer(answer=dataset[0]["answer"], entry=dataset[0]) == 1.0

from matplotlib import pyplot

assert pyplot.figure
"""


def test_what_needs_matplotlib_for_plots_alone_goes_without_it_and_others_get_it() -> None:
    """Cellular automata, which are computed by a package that imports matplotlib."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", CHECKED], check=True, timeout=120)
