"""The tracker of Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from espalier.tracking.tracker import TrackedRun, package

# The step is a column, not W&B's own counter, which refuses the steps that a rollback takes anew.
STEP = "step"
Mode = Literal["online", "offline"]
_START_SECONDS = 30.0


class WeightsAndBiases:
    """One run of W&B for all starts of a run.

    Args:
        run: its id is W&B's run id.
        directory: for W&B's files; with mode ``offline`` they are all there is, for ``wandb sync``.
        entity: user or team; None: the key's own.
        base_url: of the server; None: ``WANDB_BASE_URL``, or W&B's cloud.
        mode: None: ``WANDB_MODE``, or ``online``.
        api_key: None: ``WANDB_API_KEY``, or what ``wandb login`` left.
    """

    def __init__(
        self,
        run: TrackedRun,
        directory: Path,
        *,
        entity: str | None = None,
        base_url: str | None = None,
        mode: Mode | None = None,
        api_key: str | None = None,
    ) -> None:
        self._wandb = package("wandb", "wandb")
        self._run, self._directory = run, directory
        self._entity = entity
        # W&B itself reads the environment once a process, whoever asks first.
        self._mode = mode or os.environ.get("WANDB_MODE")
        self._given = {
            "base_url": base_url or os.environ.get("WANDB_BASE_URL"),
            "api_key": api_key or os.environ.get("WANDB_API_KEY"),
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        self._shown: Any = None

    def start(self, config: Mapping[str, Any]) -> None:
        """Goes on in the run of that id, or begins it; the configuration is its ``config``."""
        settings = self._wandb.Settings(
            # Nothing of the machine but the metrics: no output, no code, no list of packages.
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            silent=True,
            init_timeout=_START_SECONDS,
            **{name: value for name, value in self._given.items() if value},
        )
        self._shown = self._wandb.init(
            id=self._run.id,
            project=self._run.project,
            name=self._run.shown,
            entity=self._entity,
            mode=self._mode,
            dir=str(self._directory),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        # What a resumed run was changed to is as true as what it began with.
        self._shown.config.update(dict(config), allow_val_change=True)
        self._shown.define_metric("*", step_metric=STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A row of the run's history."""
        # The same number as W&B's own where that goes up, so that the parts of a run that was
        # offline more than once do not overlap.
        own = step if step >= self._shown.step else None
        self._shown.log({STEP: step, **metrics}, step=own, commit=True)

    def finish(self) -> None:
        """Waits for W&B's upload."""
        if self._shown is not None:
            self._shown.finish()
            self._shown = None
