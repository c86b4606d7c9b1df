"""The training loop: rollouts in groups, their advantages and filters, schedules, evaluation."""

from espalier.loop.batch import Batch
from espalier.loop.custom_loss import LossDatum
from espalier.loop.fit import ConvergedWarning, Fit
from espalier.loop.fit_config import FitConfig
from espalier.loop.job import Job
from espalier.loop.precomputed import AdvantageWarning
from espalier.loop.schedule import Asynchronous, Streaming, Synchronous
from espalier.loop.session import PromptTooLongError, Session, Task

__all__ = [
    "AdvantageWarning",
    "Asynchronous",
    "Batch",
    "ConvergedWarning",
    "Fit",
    "FitConfig",
    "Job",
    "LossDatum",
    "PromptTooLongError",
    "Session",
    "Streaming",
    "Synchronous",
    "Task",
]
