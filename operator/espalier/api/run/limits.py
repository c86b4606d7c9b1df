"""How long the prompts of a run's tasks may be."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import Type


class Limits(Type):
    """What a task's first prompt may take, as the base's chat template writes it."""

    max_prompt_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1048576,
        description="maxPromptTokens of the first prompt of a task, as the model sees it; counted "
        "where it is sampled, so a longer one costs its group's completions. If unset, the model's "
        "context alone bounds it, with sampling.maxTokens kept free. The same of evaluation.",
    )
    prompt_policy: Literal["Fail", "Drop"] = Field(
        default="Drop",
        description="promptPolicy for a task whose prompt is longer than maxPromptTokens or the "
        "context: Drop (it is not trained on, and counted in group/prompt_too_long; an evaluation "
        "leaves it out) or Fail (the run ends with PromptTooLong, which names the task).",
    )
