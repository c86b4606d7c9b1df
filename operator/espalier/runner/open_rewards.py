"""Opens the rewards that a run declares, or the taskset's own score where it declares none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from espalier.api.meta import decimal
from espalier.api.run.rewards import LARGEST, Http, Python, Reward
from espalier.api.run.taskset import Taskset
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import GatewayClient, Patience
from espalier.rewards import Given, Part, Question, Rewards, Source
from espalier.rewards.figures import TASKSET
from espalier.rewards.lengths import LengthRules
from espalier.rewards.module import ModuleError, check
from espalier.rewards.number import Range
from espalier.rewards.scored import Written
from espalier.rewards.service import Service
from espalier.rewards.text import How, number
from espalier.runner.declared_taskset import declared_taskset
from espalier.runner.gateway_judge import GatewayJudge
from espalier.runner.played_rewards import on_error
from espalier.runner.run_end import UserError
from espalier.runner.scorer_spec import Asked, Module, Reference, Spec, Text
from espalier.runner.scoring.process import COMMAND
from espalier.runner.scoring.protocol import Opening
from espalier.runner.scoring.remedies import REMEDY, REWARD_REMEDY
from espalier.runner.scoring.scorer import Sandbox, children
from espalier.runner.task_protocol import Tasks


@dataclass(frozen=True)
class Surroundings:
    """What rewards reach beside their tasks.

    Attributes:
        module: the text of a module by ConfigMap and key; ModuleError where there is none.
        service: the URL of a Service by name, port and path; UserError where none is reached.
        judge: a client of a model of the run's namespace, which is closed with the rewards.
        command: starts scoring workers.
    """

    module: Callable[[str, str], str]
    service: Callable[[str, int, str], str]
    judge: Callable[[str, Patience], GatewayClient]
    command: Sequence[str] = field(default=COMMAND)


def open_rewards(spec: TrainingRunSpec, tasks: Tasks, around: Surroundings) -> Rewards:
    """The rewards of a run on its tasks; nothing is started yet.

    Raises:
        UserError: ``RewardInvalid``, naming the field.
    """
    taskset = declared_taskset(spec)
    lengths = LengthRules(spec.sampling.max_tokens, spec.overlong, spec.length_penalty)
    if spec.rewards is None:
        parts = [_of_taskset(taskset, tasks, around)]
    else:
        parts = [_part(one, taskset, tasks, around) for one in spec.rewards]
    return Rewards(parts, tasks.answer, lengths, spec.reward_aggregation)


def services_of(namespace: str) -> Callable[[str, int, str], str]:
    """The URLs of the Services of a namespace, as its pods reach them."""
    return lambda name, port, path: f"http://{name}.{namespace}.svc:{port}{path}"


def invalid(field: str, detail: str, remedy: str) -> UserError:
    """The declared rewards are wrong at a field of theirs."""
    return UserError("RewardInvalid", f"rewards {field}: {detail}", remedy)


@dataclass(frozen=True)
class Sandboxed:
    """A reward that a scoring worker gives."""

    sandbox: Sandbox
    reference: Callable[[Question], Reference]

    async def ready(self) -> Mapping[str, object]:
        """What confines the worker."""
        return (await self.sandbox.ready()).model_dump()

    async def give(self, question: Question, written: Written) -> Given:
        """The reward of a completion."""
        score = await self.sandbox.ask(self.reference(question), written.text)
        return Given(score.reward, score.failure)

    async def close(self) -> None:
        """Ends the worker."""
        await self.sandbox.close()


def _of_taskset(taskset: Taskset, tasks: Tasks, around: Surroundings) -> Part:
    opening = Opening(
        scorer=tasks.scorer, seconds=taskset.score_timeout_seconds, children=children()
    )
    sandbox = Sandbox(opening, command=around.command)
    source = Sandboxed(sandbox, lambda question: tasks.reference(question.index))
    return Part(TASKSET, source, on_error=on_error(taskset), remedy=REMEDY)


def _part(one: Reward, taskset: Taskset, tasks: Tasks, around: Surroundings) -> Part:
    source = _source(one, taskset, tasks, around)
    return Part(one.name, source, decimal(one.weight), one.on_error, REWARD_REMEDY)


def _source(one: Reward, taskset: Taskset, tasks: Tasks, around: Surroundings) -> Source:
    if one.python is not None:
        module = _module(one.name, one.python, around)
        return _sandboxed(one, module, around, _asked, _range(one.python))
    if one.http is not None:
        there = one.http.service_ref
        url = around.service(there.name, there.port, there.path)
        return Service(url, one.timeout_seconds, _range(one.http))
    if one.judge is not None:
        return GatewayJudge(one.judge, one.timeout_seconds, around.judge)
    if one.environment is not None:
        return _sandboxed(one, tasks.scorer, around, lambda asked: tasks.reference(asked.index))
    text = _text(one, taskset)
    needs = text.how != "regex" or text.group is not None
    if needs:
        _check_answers(one, text, tasks)
    return _sandboxed(one, text, around, _answer(one) if needs else lambda _: "")


def _sandboxed(
    one: Reward,
    scorer: Spec,
    around: Surroundings,
    reference: Callable[[Question], Reference],
    allowed: Range | None = None,
) -> Sandboxed:
    allowed = allowed or Range()
    opening = Opening(
        scorer=scorer,
        seconds=one.timeout_seconds,
        children=children(),
        minimum=allowed.minimum,
        maximum=allowed.maximum,
    )
    return Sandboxed(Sandbox(opening, command=around.command), reference)


def _module(name: str, spec: Python, around: Surroundings) -> Module:
    ref = spec.config_map_ref
    try:
        source = around.module(ref.name, ref.key)
        check(source, spec.function)
    except ModuleError as error:
        raise invalid(
            f"{name}.python",
            f"configmap/{ref.name}/{ref.key} {error}",
            "Check name and key of configMapRef, or mend the module",
        ) from error
    return Module(source=source, function=spec.function)


def _text(one: Reward, taskset: Taskset) -> Text:
    how: How
    pattern, group, tolerance = "", None, Decimal(0)
    if one.regex is not None:
        how, pattern, group = "regex", one.regex.pattern, one.regex.group
        _check_pattern(one.name, pattern, group)
    elif one.numeric is not None:
        how, tolerance = "numeric", Decimal(one.numeric.tolerance)
    else:
        how = "boxed" if one.boxed is not None else "exact"
    return Text(
        how=how,
        extraction=taskset.answer_extraction,
        tolerance=tolerance,
        pattern=pattern,
        group=group,
    )


def _check_pattern(name: str, pattern: str, group: int | None) -> None:
    field = f"{name}.regex"
    try:
        groups = re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        detail = f"{pattern!r} is no expression: {error}"
        raise invalid(f"{field}.pattern", detail, "Mend it as Python's re takes it") from error
    if group is not None and group > groups:
        detail = f"{group} of {groups} groups"
        raise invalid(f"{field}.group", detail, "Count the groups of the pattern from 1")


def _check_answers(one: Reward, text: Text, tasks: Tasks) -> None:
    """The first answers, before a worker starts; each other one is met when it is asked for."""
    for index in range(min(tasks.size, 8)):
        answer = tasks.answer(index)
        _expected(one, tasks.task(index).id, answer)
        if text.how == "numeric" and number(answer or "") is None:
            raise invalid(
                f"{one.name}.numeric",
                f"the answer of task {tasks.task(index).id} is no number",
                "Use exact, or tasks whose answers are numbers",
            )


def _expected(one: Reward, task: str, answer: str | None) -> str:
    if answer is None:
        raise invalid(
            f"{one.name}.{one.kind}",
            f"task {task} has no answer to compare with",
            "Use environment, which scores such tasks itself",
        )
    return answer


def _answer(one: Reward) -> Callable[[Question], Reference]:
    return lambda question: _expected(one, question.id, question.answer)


def _asked(question: Question) -> Asked:
    return Asked(
        id=question.id, index=question.index, messages=question.wire(), answer=question.answer
    )


def _range(spec: Python | Http) -> Range:
    low = decimal(spec.minimum) if spec.minimum is not None else -LARGEST
    return Range(low, decimal(spec.maximum) if spec.maximum is not None else LARGEST)
