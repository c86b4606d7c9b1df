"""Tasks of reasoning-gym. What scores them runs elsewhere (``scoring``)."""

from __future__ import annotations

import difflib
import os
from typing import Any

from espalier.api.run.taskset import Taskset
from espalier.environments.errors import invalid
from espalier.environments.tasks import Task, within
from espalier.runner.gym_package import DATASETS, gym
from espalier.runner.scorer_spec import Gym
from espalier.runner.task_protocol import ask

DATASET_FIELD = "taskset.reasoningGym.dataset"
CONFIG_FIELD = "taskset.reasoningGym.config"

# Its scorer gives 1.0 to any answer that is not empty.
_REFUSED = {
    "game_of_life_halting": "it rewards every answer, so that nothing can be learned",
    "composite": "it mixes datasets by Python objects; name one of its parts instead",
}
# Their tasks follow the order of sets, which differs from process to process.
_HASH_DEPENDENT = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note"})
# Set by the taskset itself.
_RESERVED = ("seed", "size")


class ReasoningGymTasks:
    """Generated tasks: the same seed and configuration give the same tasks in every process.

    Raises:
        UserError: ``TasksetInvalid``, naming the field.
    """

    def __init__(self, spec: Taskset, dataset: str, config: dict[str, Any]) -> None:
        self._spec = spec
        self._name = dataset
        self._config = config
        self._dataset = create(dataset, config, spec.seed, spec.size)

    @property
    def size(self) -> int:
        """Number of tasks."""
        return self._spec.size

    def task(self, index: int) -> Task:
        """The task; the dataset itself would generate one for any index."""
        entry = self._dataset[within(index, self.size)]
        messages = ask(self._spec, str(entry["question"]))
        return Task(f"reasoning-gym/{self._name}/{index}", messages)

    @property
    def scorer(self) -> Gym:
        """The dataset's own score."""
        return scorer_of(self._spec, self._name, self._config, self._spec.size)

    def reference(self, index: int) -> int:
        """The index: the scorer generates the same task."""
        return within(index, self.size)

    def answer(self, index: int) -> str | None:
        """The dataset's own answer; a few datasets have none."""
        return answer_of(self._dataset[within(index, self.size)])


def scorer_of(spec: Taskset, dataset: str, config: dict[str, Any], size: int) -> Gym:
    """What scores the tasks of a dataset."""
    return Gym(
        dataset=dataset,
        config=config,
        seed=spec.seed,
        size=size,
        extraction=spec.answer_extraction,
    )


def answer_of(entry: Any) -> str | None:
    """The answer that a dataset gives for a task of its own."""
    given = entry["answer"]
    return None if given is None else str(given)


def create(
    name: str,
    config: dict[str, Any],
    seed: int,
    size: int,
    fields: tuple[str, str] = (DATASET_FIELD, CONFIG_FIELD),
) -> Any:
    """The dataset; UserError names the field that is wrong."""
    dataset_field, config_field = fields
    if name in _REFUSED:
        raise invalid(
            f"{dataset_field}: {name} cannot be used: {_REFUSED[name]}", "Choose another dataset"
        )
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
        remedy = (
            f"Did you mean: {', '.join(near)}" if near else "See reasoning-gym's list of datasets"
        )
        raise invalid(f"{dataset_field}: reasoning-gym has no dataset {name}", remedy)
    if name in _HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED") != "0":
        raise invalid(
            f"{dataset_field}: {name} gives other tasks in every process",
            "Start the process with PYTHONHASHSEED=0, as the runner's Job does",
        )
    for reserved in _RESERVED:
        if reserved in config:
            raise invalid(
                f"{config_field}: {reserved} is set twice", f"Set taskset.{reserved} alone"
            )
    try:
        dataset = gym.create_dataset(name, seed=seed, size=size, **config)
        dataset[0]
    except Exception as error:  # TypeError, AssertionError, ValueError, IndexError, as it comes.
        detail = f"{config_field} of {name}: {str(error) or type(error).__name__}"
        raise invalid(detail, f"Arguments and defaults: {_defaults(name)}") from error
    return dataset


def _defaults(name: str) -> str:
    fields = DATASETS[name][1].__dataclass_fields__
    shown = [key for key in fields if key not in _RESERVED]
    return ", ".join(shown) or "none"
