"""What a completion is worth: several weighted rewards, each of one kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import (
    DECIMAL_PATTERN,
    FUNCTION_PATTERN,
    DataKey,
    Name,
    NonNegativeDecimal,
    ObjectRef,
    ResourceName,
    Type,
    cel,
    explained,
    list_map,
)

KINDS = ("exact", "numeric", "boxed", "regex", "python", "http", "judge", "environment")
# Names of what a run itself adds to a reward, beside the declared ones.
OVERLONG, LENGTH = "overlong", "length"
# So that rollout/reward/<name>/errors is no longer than a metric's name may be.
REWARD_NAME_CHARS = 40
# With three figures each, as many as the status of a step has room for.
REWARDS_MOST = 16
PATH_PATTERN = r"^/[A-Za-z0-9._~/-]*$"

# Sums of as many as there may be stay finite, and exact enough.
LARGEST = 1e6
Bounded = Annotated[
    str,
    Field(
        pattern=DECIMAL_PATTERN,
        max_length=32,
        json_schema_extra=explained(
            DECIMAL_PATTERN,
            'must be a quoted decimal from "-1e6" to "1e6", such as "0.5"',
            "double(self) >= -1000000.0 && double(self) <= 1000000.0",
        ),
    ),
]
Aggregation = Literal["SumThenNormalize", "NormalizeThenSum"]
OnRewardError = Literal["Fail", "Zero", "Drop"]


class Exact(Type):
    """1 where the extracted answer is the task's answer, letter by letter."""


class Numeric(Type):
    """1 where the extracted answer is a number near the task's answer."""

    tolerance: NonNegativeDecimal = Field(
        default="0",
        description="tolerance is how far the numbers may be apart, a quoted decimal.",
    )


class Boxed(Type):
    r"""1 where the last ``\boxed{...}`` holds the task's answer."""


class Regex(Type):
    """1 where an expression is found in the completion."""

    pattern: str = Field(
        min_length=1,
        max_length=1024,
        description="pattern is an expression of Python's re, looked for anywhere in the "
        "completion; (?s) at its beginning lets a dot match line ends.",
    )
    group: int | None = Field(
        default=None,
        ge=0,
        le=99,
        description="group of the pattern whose text must be the task's answer, letter by letter; "
        "0 is the whole match. If unset, a match is enough.",
    )


class ConfigMapKey(Type):
    """One key of a ConfigMap."""

    name: ResourceName = Field(description="name of the ConfigMap in the run's namespace.")
    key: DataKey = Field(
        default="reward.py", description="key of the ConfigMap that holds the module."
    )


def _bound(which: str, default: str) -> Any:
    return Field(
        default=None,
        description=f"{which} reward that it may give, a quoted decimal; any other is a failure "
        f"with the cause OutOfRange. {default}",
    )


_BOUNDS = (
    "!has(self.minimum) || !has(self.maximum) || double(self.minimum) < double(self.maximum)",
    "minimum must be below maximum",
    ".minimum",
)


class Python(Type):
    """A function of a module in a ConfigMap, called in a sandbox."""

    config_map_ref: ConfigMapKey = Field(
        description="configMapRef names the ConfigMap and the key of the module. The module is "
        "read when the runner opens the rewards, at its start and after an edit of the rewards."
    )
    function: str = Field(
        default="reward",
        description="function of the module that is called with (prompt, completion, answer, task) "
        "and gives the reward as a float. prompt is the text of the last message, answer the "
        "task's or None, and task a dict with id, index and messages.",
        max_length=64,
        json_schema_extra=explained(FUNCTION_PATTERN, "must be the name of a Python function"),
    )
    minimum: Bounded | None = _bound("minimum", "-1e6 if unset.")
    maximum: Bounded | None = _bound("maximum", "1e6 if unset.")

    model_config = ConfigDict(json_schema_extra=cel(_BOUNDS))


class ServiceRef(Type):
    """A Service of the run's namespace."""

    name: Name = Field(description="name of the Service.")
    port: int = Field(ge=1, le=65535, description="port of the Service.")
    path: str = Field(
        default="/",
        max_length=256,
        description="path that is posted to.",
        json_schema_extra=explained(
            PATH_PATTERN, "must begin with '/' and hold no query, such as /score"
        ),
    )


class Http(Type):
    """A service that is asked by POST with {task, messages, completion, answer} as JSON."""

    service_ref: ServiceRef = Field(
        description="serviceRef names a Service in the run's namespace. It answers 200 with "
        "{reward, metrics}: a number, and up to 8 numbers by name, which rollouts.jsonl keeps. "
        "It gets no token; a redirect is not followed; 429, 502, 503 and 504 are asked again "
        "until timeoutSeconds are over."
    )
    minimum: Bounded | None = _bound("minimum", "-1e6 if unset.")
    maximum: Bounded | None = _bound("maximum", "1e6 if unset.")

    model_config = ConfigDict(json_schema_extra=cel(_BOUNDS))


class JudgeSampling(Type):
    """How a judge is sampled."""

    temperature: NonNegativeDecimal = Field(
        default="0", description="temperature, a quoted decimal; 0 is greedy."
    )
    max_tokens: int = Field(
        default=512, ge=8, le=32768, description="maxTokens of a judgement, its reasons included."
    )


class Judge(Type):
    """Another model, which reads the completion and a rubric."""

    model_ref: ObjectRef = Field(
        description="modelRef names a TrainableModel of the run's namespace, whose head must serve."
    )
    rubric: str = Field(
        min_length=1,
        max_length=16384,
        description="rubric says what the judge shall look for. Task, answer and completion follow "
        "it as quoted data; the judge must end with <score>number</score>.",
    )
    minimum: Bounded = Field(
        default="0", description="minimum score, a quoted decimal, which the judge is told."
    )
    maximum: Bounded = Field(
        default="1", description="maximum score, a quoted decimal, which the judge is told."
    )
    sampling: JudgeSampling = Field(
        default_factory=JudgeSampling, description="sampling of the judge."
    )

    model_config = ConfigDict(json_schema_extra=cel(_BOUNDS))


class Environment(Type):
    """What the taskset itself gives: reasoning-gym's score, or 1 for the answer of a file."""


class Reward(Type):
    """One reward: exactly one kind."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=REWARD_NAME_CHARS,
            json_schema_extra=explained(
                r"^[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
                "must be lower-case letters, digits, '-' and '_', such as correct; overlong and "
                "length are what the run itself adds",
                f"!(self in ['{OVERLONG}', '{LENGTH}'])",
            ),
        ),
    ] = Field(description="name of the reward in metrics and records.")
    weight: Bounded = Field(
        default="1.0",
        description="weight that multiplies the reward, a quoted decimal: below 0 for a penalty, "
        "0 to measure it alone.",
    )
    timeout_seconds: int = Field(
        default=30,
        ge=1,
        le=600,
        description="timeoutSeconds is how long the reward of one completion may take.",
    )
    on_error: OnRewardError = Field(
        default="Drop",
        description="onError says what follows where the reward cannot be had: the completion's "
        "group is dropped (Drop), this reward is 0 (Zero), or the run stops (Fail). "
        "rollout/scorer_errors and rollout/reward/<name>/errors count it.",
    )
    exact: Exact | None = Field(
        default=None,
        description="exact gives 1 where what taskset.answerExtraction finds is the task's answer, "
        "letter by letter, else 0.",
    )
    numeric: Numeric | None = Field(
        default=None,
        description="numeric gives 1 where what taskset.answerExtraction finds is a number that "
        "equals the task's answer up to tolerance, else 0.",
    )
    boxed: Boxed | None = Field(
        default=None,
        description=r"boxed gives 1 where the last \boxed{...} holds the task's answer, blanks and "
        "dollar signs aside, else 0.",
    )
    regex: Regex | None = Field(
        default=None,
        description="regex gives 1 where the completion has what it describes, else 0.",
    )
    python: Python | None = Field(
        default=None,
        description="python calls a function of a ConfigMap's module, without network, token and "
        "files, one process for each completion.",
    )
    http: Http | None = Field(
        default=None, description="http asks a Service of the run's namespace."
    )
    judge: Judge | None = Field(default=None, description="judge asks another model.")
    environment: Environment | None = Field(
        default=None,
        description="environment is the score of the taskset itself, from 0 to 1.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                f"[{', '.join(f'has(self.{kind})' for kind in KINDS)}].filter(x, x).size() == 1",
                f"set exactly one of {', '.join(KINDS[:-1])} and {KINDS[-1]}",
            )
        )
    )

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` it is; ValueError for an object that the API server never admitted."""
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"reward {self.name} has {len(given)} kinds")
        return given[0]


Rewards = Annotated[
    list[Reward],
    Field(min_length=1, max_length=REWARDS_MOST, json_schema_extra=list_map("name")),
]
