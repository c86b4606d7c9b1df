"""The settings of a fit: what a script gives, and what they are once its run in Git has its say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from espalier.api.objective import Objective
from espalier.api.run.advantage import Estimator, Scale
from espalier.api.wire.declared import Declared, DeclaredOptimizer, RateSchedule
from espalier.client.errors import ConfigurationError
from espalier.client.sampling import Sampling
from espalier.core.run.learning_rate import scheduled
from espalier.loop.minibatches import Uses
from espalier.loop.schedule import Streaming

_LOSS = "importance_sampling"
_GROUP = 8
_ADAMW = DeclaredOptimizer(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0, grad_clip_norm=0.0)


@dataclass(frozen=True)
class FitConfig:
    """All settings of a fit; the whole of it is kept with every checkpoint and told to trackers.

    What is None is as the run in Git declares it, and where that leaves it open too, the default
    that is named. What both give must agree: the trainer refuses anything else with 409.

    Attributes:
        steps: optimizer steps to take in all, those before a resume included.
        learning_rate: of a step, or the highest of a schedule; there is no default.
        learning_rate_schedule: of the rate over the steps; constant.
        group: rollouts per task; 8.
        tasks_per_step: tasks of one optimizer step.
        minibatches: that a batch is cut into: it has ``tasks_per_step`` tasks for each, and each is
            an optimizer step.
        epochs: over a batch; each after the first deals its groups out to the minibatches anew,
            drawn from the step. Choose a loss that clips above one step a batch.
        seed: of how epochs deal groups out, and of nothing else: samples are the server's.
        loss_fn: importance_sampling.
        loss_fn_config: of the loss.
        objective: how losses add up, and what is corrected or added; Tinker's sum. Of its fields,
            those that are not given are the run's.
        advantage_estimator, advantage_scale: as of ``forward_backward``; GroupMean and None.
        beta1, beta2, eps, weight_decay, grad_clip_norm: of AdamW; as of ``optim_step``.
        use_precomputed_advantage: rollouts bring their advantages, token by token.
        sampling: of training; with a loss that compares policies its only choice is a temperature
            above 0, at which the trainer computes too.
        validation_sampling: of validation; greedy.
        validation_group: rollouts of each task of a validation.
        pass_at_k: the k of each ``pass@k`` of a validation, at most ``validation_group``.
        validate_every: steps between validations; 0: none.
        val_before_train: validate before the first step; with ``val_only`` nothing else is done.
        resume_from: id of the checkpoint to go on from; empty: from where the trainer is. Once the
            fit has taken a step from there it prefers its own newer checkpoints: started again, it
            goes on where the trainer is.
        rounds: of sampling for one step while no group has rewards that differ. When all are
            used up, a model that has taken no step yet cannot learn these tasks and the fit fails;
            a later one has nothing more to learn from them, and the fit ends early.
    """

    steps: int
    learning_rate: float | None = None
    learning_rate_schedule: RateSchedule | None = None
    group: int | None = None
    tasks_per_step: int = 8
    minibatches: int = 1
    epochs: int = 1
    seed: int = 0
    loss_fn: str | None = None
    loss_fn_config: Mapping[str, float] | None = None
    objective: Objective | None = None
    advantage_estimator: Estimator | None = None
    advantage_scale: Scale | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    weight_decay: float | None = None
    grad_clip_norm: float | None = None
    use_precomputed_advantage: bool | None = None
    sampling: Sampling | None = None
    validation_sampling: Sampling | None = None
    validation_group: int = 1
    pass_at_k: Sequence[int] = (1,)
    validate_every: int = 0
    val_before_train: bool = False
    val_only: bool = False
    resume_from: str = ""
    max_concurrent: int = 64
    max_model_length: int | None = None
    rollout_timeout: float | None = None
    rounds: int = 20

    def __post_init__(self) -> None:
        counts = ("steps", "tasks_per_step", "minibatches", "epochs", "rounds", "validation_group")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.group is not None and self.group < 1:
            raise ConfigurationError(f"group is {self.group}: give at least 1")
        _check_validation(self)
        if self.group is not None:
            _check_group(self.group, self.advantage_estimator, self.use_precomputed_advantage)
        if self.sampling is not None:
            _check_sampling(self.sampling, self.loss_fn or _LOSS)
        if self.minibatches > 1 and self.advantage_scale == "BatchStd":
            raise ConfigurationError(
                "advantage_scale BatchStd needs all rewards of a batch at once, and each of "
                f"{self.minibatches} minibatches is sent by itself: choose GroupStd, or use epochs"
            )

    @property
    def uses(self) -> Uses:
        """How often a batch is learnt from."""
        return Uses(self.minibatches, self.epochs, self.seed)

    def bound(self, declared: Declared) -> Settings:
        """The settings under what a run in Git declares.

        Raises:
            ConfigurationError: neither gives a learning rate, or the two do not go together.
        """
        rate = declared.learning_rate if self.learning_rate is None else self.learning_rate
        if rate is None:
            raise ConfigurationError(
                "learning_rate is not given, and the run declares none: give one, such as 1e-5"
            )
        loss_fn = self.loss_fn or declared.loss_fn or _LOSS
        own_loss = {} if loss_fn != declared.loss_fn else declared.loss_fn_config
        config = own_loss if self.loss_fn_config is None else self.loss_fn_config
        if self.use_precomputed_advantage is None:
            precomputed = declared.advantage_source == "Precomputed"
        else:
            precomputed = self.use_precomputed_advantage
        schedule = self.learning_rate_schedule or declared.learning_rate_schedule
        settings = Settings(
            learning_rate=rate,
            learning_rate_schedule=schedule,
            group=self.group or declared.group_size or _GROUP,
            loss_fn=loss_fn,
            loss_fn_config=dict(config),
            objective=_objective(self.objective, declared),
            advantage_estimator=self.advantage_estimator
            or declared.advantage_estimator
            or "GroupMean",
            advantage_scale=self.advantage_scale or declared.advantage_scale or "None",
            optimizer=_optimizer(self, declared.optimizer or _ADAMW),
            use_precomputed_advantage=precomputed,
            sampling=self.sampling or _sampling(declared),
        )
        _check_group(settings.group, settings.advantage_estimator, precomputed)
        _check_sampling(settings.sampling, loss_fn)
        return settings


@dataclass(frozen=True)
class Settings:
    """The settings of a FitConfig that a run may declare, each with its value."""

    learning_rate: float
    learning_rate_schedule: RateSchedule | None
    group: int
    loss_fn: str
    loss_fn_config: Mapping[str, float]
    objective: Objective
    advantage_estimator: Estimator
    advantage_scale: Scale
    optimizer: DeclaredOptimizer
    use_precomputed_advantage: bool
    sampling: Sampling

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return scheduled(self.learning_rate, self.learning_rate_schedule, step)

    def wire(self) -> dict[str, Any]:
        """As JSON can say it."""
        schedule = self.learning_rate_schedule
        return {
            **{name: getattr(self, name) for name in ("learning_rate", "group", "loss_fn")},
            "learning_rate_schedule": None if schedule is None else schedule.model_dump(),
            "loss_fn_config": dict(self.loss_fn_config),
            "objective": self.objective.model_dump(),
            "advantage_estimator": self.advantage_estimator,
            "advantage_scale": self.advantage_scale,
            **self.optimizer.model_dump(),
            "use_precomputed_advantage": self.use_precomputed_advantage,
            "sampling": asdict(self.sampling),
        }


def as_json(config: FitConfig) -> dict[str, Any]:
    """What a script gave, as JSON can say it."""
    given = asdict(config)
    for name in ("learning_rate_schedule", "objective"):
        value = getattr(config, name)
        given[name] = None if value is None else value.model_dump()
    return given | {"pass_at_k": list(config.pass_at_k)}


def check_own_loss(config: FitConfig, schedule: object) -> None:
    """ConfigurationError for what has no meaning beside a loss of the script's own."""
    for name in ("loss_fn", "loss_fn_config", "objective"):
        if getattr(config, name) is not None:
            raise ConfigurationError(
                f"{name} is given, and loss is a function of your own: leave {name} out"
            )
    if isinstance(schedule, Streaming):
        raise ConfigurationError(
            "loss is of a whole step, and Streaming adds gradients before all of it is there: "
            "choose another schedule"
        )


# Declared's fields of the objective have the names that Objective has.
_OF_OBJECTIVE = tuple(Objective.model_fields)


def _objective(given: Objective | None, declared: Declared) -> Objective:
    """The script's fields, the run's where the script gives none, and the defaults."""
    found = {name: getattr(declared, name) for name in _OF_OBJECTIVE}
    own = given.model_fields_set if given is not None else set[str]()
    return Objective(
        **{name: value for name, value in found.items() if value is not None}
        | {name: getattr(given, name) for name in own}
    )


def _optimizer(config: FitConfig, others: DeclaredOptimizer) -> DeclaredOptimizer:
    own = {name: getattr(config, name) for name in DeclaredOptimizer.model_fields}
    return others.model_copy(update={n: value for n, value in own.items() if value is not None})


def _sampling(declared: Declared) -> Sampling:
    return Sampling().but(max_tokens=declared.max_tokens, temperature=declared.temperature)


def _check_group(group: int, estimator: Estimator | None, precomputed: bool | None) -> None:
    if group == 1 and not precomputed and estimator != "None":
        raise ConfigurationError(
            "group is 1: a rollout alone has nothing to be compared with and its advantage is "
            "always 0; give at least 2, use_precomputed_advantage, or advantage_estimator None"
        )


def _check_sampling(sampling: Sampling, loss_fn: str) -> None:
    drawn = sampling.drawn()
    shifted = [*drawn.shifted_by, *([] if drawn.temperature else ["temperature 0"])]
    if shifted and loss_fn != "cross_entropy":
        raise ConfigurationError(
            f"sampling has {', '.join(shifted)}: its log-probs are of another distribution "
            "than the policy's, and every ratio would be wrong; sample for training with a "
            "temperature above 0 alone (validation_sampling may have them), or train with "
            "cross_entropy"
        )


def _check_validation(config: FitConfig) -> None:
    for k in config.pass_at_k:
        if not 1 <= k <= config.validation_group:
            raise ConfigurationError(
                f"pass_at_k has {k}, and a validation has {config.validation_group} rollouts of a "
                "task: raise validation_group, or leave it out"
            )
    given = config.validation_sampling
    if config.validation_group > 1 and (given is None or given.temperature == 0):
        raise ConfigurationError(
            f"validation_group is {config.validation_group}, and a validation samples greedily, "
            "which gives equal answers: give validation_sampling with a temperature above 0"
        )
