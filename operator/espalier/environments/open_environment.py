"""Opens the environment that a taskset names."""

from __future__ import annotations

from espalier.api.run.taskset import PLAYED, Taskset
from espalier.environments.calculator import CalculatorEnvironment
from espalier.environments.environment import Environment
from espalier.environments.errors import invalid
from espalier.environments.game_2048 import Game2048Environment
from espalier.environments.open_env import OpenEnvEnvironment
from espalier.environments.python_source import open_python


def open_environment(spec: Taskset) -> Environment:
    """The environment of a taskset; its ``ready`` opens what it needs.

    Raises:
        UserError: the taskset names none.
    """
    if spec.game_2048 is not None:
        return Game2048Environment(spec, spec.game_2048)
    if spec.calculator is not None:
        return CalculatorEnvironment(spec, spec.calculator)
    if spec.open_env is not None:
        return OpenEnvEnvironment(spec, spec.open_env)
    if spec.user_image:
        return open_python(spec)
    sources = ", ".join(f"taskset.{source}" for source in PLAYED)
    raise invalid("taskset names no environment", f"Set one of {sources}")
