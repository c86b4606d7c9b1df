"""What tasks a run was given, as one digest: to tell whether two runs were asked the same."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from espalier.api.run.taskset import Taskset
from espalier.api.wire import TasksetUsed
from espalier.core.volume import DIGEST_PREFIX, canonical_json
from espalier.runner.task_protocol import Tasks


def taskset_used(spec: Taskset, tasks: Tasks) -> TasksetUsed:
    """The digest of the tasks in their order with their answers, and size and seed.

    Tasks of a file are read one by one. Generated ones follow from what generates them, and a
    million of them would take minutes.
    """
    digest = hashlib.sha256()
    if spec.reasoning_gym is not None:
        generated = {
            "reasoningGym": spec.reasoning_gym.wire(),
            "version": version("reasoning-gym"),
            "seed": spec.seed,
            "size": tasks.size,
            "systemPrompt": spec.system_prompt,
            "promptTemplate": spec.prompt_template,
        }
        digest.update(canonical_json(generated).encode())
    else:
        for index in range(tasks.size):
            messages = [message.wire() for message in tasks.task(index).messages]
            digest.update(canonical_json([messages, tasks.reference(index)]).encode() + b"\n")
    return TasksetUsed(
        digest=f"{DIGEST_PREFIX}{digest.hexdigest()}", size=tasks.size, seed=spec.seed
    )
