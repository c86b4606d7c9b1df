"""For how long the parts of a step may take."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel


class Timeouts(Type):
    """Bounds in seconds; what is unset is bounded by the gateway and the client, a loss by 60 s."""

    sample_seconds: int | None = Field(
        default=None,
        ge=1,
        le=600,
        description="sampleSeconds of one request for completions, of training or of an "
        "evaluation. A rollout whose request takes longer has failed (rolloutErrors); an "
        "evaluation begins again. The gateway waits for 600 s at most.",
    )
    group_seconds: int | None = Field(
        default=None,
        ge=1,
        le=604800,
        description="groupSeconds from the first request of a task to the last of its rewards, "
        "retries included. Rollouts that are not over by then have failed.",
    )
    train_seconds: int | None = Field(
        default=None,
        ge=1,
        le=900,
        description="trainSeconds of one command of the trainer, forward-backward or optimizer "
        "step; then the run ends with TrainTimeout. The client waits for 900 s at most.",
    )
    loss_seconds: int | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="lossSeconds of the function of loss Custom, for one step; then the run ends "
        "with LossFailed. 60 if unset.",
    )
    step_seconds: int | None = Field(
        default=None,
        ge=1,
        le=2592000,
        description="stepSeconds of all rounds of one step, from its first request to its "
        "checkpoint; then the run ends with StepTimeout.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.groupSeconds) || !has(self.sampleSeconds)"
                " || self.sampleSeconds <= self.groupSeconds",
                "sampleSeconds must not be above groupSeconds, within which it is waited",
                ".sampleSeconds",
            ),
            (
                "!has(self.stepSeconds) || !has(self.groupSeconds)"
                " || self.groupSeconds <= self.stepSeconds",
                "groupSeconds must not be above stepSeconds, within which it is waited",
                ".groupSeconds",
            ),
            (
                "!has(self.stepSeconds) || !has(self.trainSeconds)"
                " || self.trainSeconds <= self.stepSeconds",
                "trainSeconds must not be above stepSeconds, within which it is waited",
                ".trainSeconds",
            ),
        )
    )
