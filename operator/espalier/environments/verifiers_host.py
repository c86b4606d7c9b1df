"""Tasks and rewards of a taskset of verifiers, played in the image that has them.

A host (``host``) imports this file beside itself; verifiers 0.4 (its v1 API) and the taskset must
be installed in the image. Used of verifiers are the taskset's ``load``, each task's prompt and
system prompt, and its ``@vf.reward`` and ``@vf.metric`` methods through ``Task.score``. Its
harnesses and runtimes are not used: they install packages when they run and reach for a cloud. So a
rollout is one turn, and a task that needs more than that is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.trace import AgentInfo, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage
from verifiers.v1.utils.loaders import load_taskset, taskset_config_type

_tasks: dict[str, Any] = {}


def tasks(seed: int, size: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The taskset's tasks in an order that the seed draws; of an endless one the first ones."""
    config = taskset_config_type(options["id"])(**{**options["config"], "id": options["id"]})
    taskset = load_taskset(config)
    if taskset.toolsets(config):
        raise ValueError("the taskset has tool servers, which need a runtime of verifiers")
    view = taskset.shuffle(seed).take(size) if taskset.bounded else taskset.take(size)
    for task in view:
        _check(task)
        name = task.data.id or str(task.data.idx)
        if name in _tasks:
            raise ValueError(f"two tasks have the id {name}")
        _tasks[name] = task
        data = task.data.model_dump(mode="json", exclude_none=True)
        yield {"id": name, "prompt": task.data.prompt_text, "data": data}


async def rollout(task: dict[str, Any], session: Any) -> float:
    """One turn, and the sum of the task's weighted rewards."""
    played = _tasks[task["id"]]
    messages = _messages(played.data)
    turn = await session.sample([message.model_dump(exclude_none=True) for message in messages])
    trace = _trace(played, messages, turn)
    await played.score(trace)
    session.metadata["rewards"] = {
        name: None if given is None else given.value for name, given in trace.rewards.items()
    }
    session.metadata["metrics"] = dict(trace.metrics)
    if not trace.rewards:
        raise ValueError("the task has no @vf.reward method")
    return float(trace.reward)


def _check(task: Any) -> None:
    """Refuses what one turn in this process cannot give."""
    kind = type(task)
    if kind.NEEDS_CONTAINER:
        raise ValueError(f"{kind.__name__} needs a container of verifiers")
    if kind.toolsets(task.config):
        raise ValueError(f"{kind.__name__} has tool servers, which need a runtime of verifiers")
    for hook in ("setup", "finalize"):
        if getattr(kind, hook) is not getattr(vf.Task, hook):
            raise ValueError(f"{kind.__name__}.{hook} needs a runtime of verifiers")
    if task.hooks("stop"):
        raise ValueError(f"{kind.__name__} has @vf.stop methods, and a rollout here is one turn")
    if task.config.judges:
        raise ValueError(f"{kind.__name__} is scored by judges, which call other models")
    for method in (*task.hooks("reward"), *task.hooks("metric")):
        if "runtime" in method.__code__.co_varnames[: method.__code__.co_argcount]:
            raise ValueError(f"{kind.__name__}.{method.__name__} needs a runtime of verifiers")
    if not _messages(task.data):
        raise ValueError(f"{kind.__name__} has no prompt, so that a user would have to begin")


def _messages(data: Any) -> list[Any]:
    system = [SystemMessage(content=data.system_prompt)] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*system, UserMessage(content=data.prompt)]
    return [*system, *(data.prompt or [])] if data.prompt else []


def _trace(task: Any, messages: list[Any], turn: Any) -> Any:
    """What the reward methods read: the chat with the model's turn at its end."""
    made = Trace(
        task=TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=AgentInfo(config=AgentConfig()),
    )
    said = AssistantMessage(content=turn.text, reasoning_content=turn.reasoning or None)
    for place, message in enumerate([*messages, said]):
        parent = place - 1 if place else None
        node = MessageNode(parent=parent, message=message, sampled=message is said)
        made.nodes.append(node)
    made.is_completed = made.ok = True
    return made
