"""What tasks a run was given, as one digest: to tell whether two runs were asked the same."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from espalier.api.run.taskset import Taskset
from espalier.api.wire.step import TasksetUsed
from espalier.environments.digest import taskset_digest
from espalier.runner.task_protocol import Tasks


def taskset_used(spec: Taskset, tasks: Tasks) -> TasksetUsed:
    """The digest of the tasks in their order with their answers, and size and seed.

    Tasks of a file are read one by one. Generated ones follow from what generates them, and a
    million of them would take minutes.
    """
    if spec.reasoning_gym is not None:
        digest = taskset_digest([_generator(spec, tasks.size)])
    else:
        digest = taskset_digest(_told(tasks))
    return TasksetUsed(digest=digest, size=tasks.size, seed=spec.seed)


def _generator(spec: Taskset, size: int) -> dict[str, object]:
    return {
        "reasoningGym": spec.reasoning_gym.wire() if spec.reasoning_gym else None,
        # Another version may generate other tasks of the same seed.
        "version": version("reasoning-gym"),
        "seed": spec.seed,
        "size": size,
        "systemPrompt": spec.system_prompt,
        "promptTemplate": spec.prompt_template,
    }


def _told(tasks: Tasks) -> Iterator[list[object]]:
    for index in range(tasks.size):
        messages = [message.wire() for message in tasks.task(index).messages]
        yield [messages, tasks.reference(index)]
