"""The trackers of a declared run: made from its spec and from what its pod was given.

Keys are in the pod's environment, where the operator put them by reference; the spec holds none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.api.run.tracking import Tracking
from espalier.api.trainingrun import TrainingRunSpec
from espalier.client.errors import ConfigurationError
from espalier.core.manifests.runner import BOARDS_PATH, MLFLOW_TOKEN, TRACKIO_PATH, WANDB_KEY
from espalier.runner.journal import Journal
from espalier.runner.run_end import UserError
from espalier.tracking import MLflow, TensorBoard, TrackedRun, Tracker, Trackio, WeightsAndBiases
from espalier.tracking.trackers import Trackers

# What the trainer answers under one name is on the checkpoint under another: trackers show that.
OF_CHECKPOINT = {
    "loss:sum": "loss/sum",
    "tokens:sum": "tokens/trained",
    "unique_tokens:sum": "tokens/unique",
    "zero_gradient:mean": "tokens/zero_gradient_fraction",
    "entropy:mean": "policy/entropy",
    "ratio:mean": "policy/ratio_mean",
    "ratio:max": "policy/ratio_max",
    "clipped:mean": "policy/clipped_fraction",
    "clipped_low:mean": "policy/clipped_fraction_low",
    "clipped_high:mean": "policy/clipped_fraction_high",
    "logprob_difference:mean": "logprob/difference_mean",
    "logprob_difference:max": "logprob/difference_max",
    "temperature_assumed:mean": "logprob/temperature_assumed_fraction",
    "mismatch_kl:mean": "policy/mismatch_kl",
    "mismatch_kl_k1:mean": "policy/mismatch_kl_k1",
    "correction_weight:mean": "policy/correction_weight_mean",
    "correction_truncated:mean": "policy/correction_truncated_fraction",
    "correction_masked:mean": "policy/correction_masked_fraction",
    "reference_kl:mean": "policy/reference_kl",
}
# The operator ends a runner 30 s after it asked it to.
FINISH_SECONDS = 15.0


class RunTrackers:
    """Tells the trackers of a run of its steps. Nothing that they do holds it up.

    Args:
        journal: where trackers that fail are told of.
        run: namespace and name.
        environment: of this process.
    """

    def __init__(
        self, journal: Journal, run: tuple[str, str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._journal = journal
        self._run = run
        self._environment = os.environ if environment is None else environment
        self._started: tuple[Tracking, Trackers] | None = None

    def metrics(self) -> dict[str, float]:
        """What trackers did not take, if anything; for the step's own metrics."""
        return self._started[1].metrics() if self._started is not None else {}

    def open(self, spec: TrainingRunSpec, uid: str) -> None:
        """Starts the trackers of a run before it takes a step, so that it takes none without.

        Raises:
            UserError: ``TrackingInvalid`` for a tracker that this image does not have.
        """
        self._of(spec, uid)

    def step(
        self, spec: TrainingRunSpec, uid: str, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Tells a step; returns at once.

        Args:
            spec: of the run, as it is now.
            uid: of the run.
            step: its number in the run.
            metrics: of the runner, and of the trainer's answer.
        """
        trackers = self._of(spec, uid)
        if trackers is not None:
            trackers.log(step, {OF_CHECKPOINT.get(n, n): value for n, value in metrics.items()})

    def finish(self) -> None:
        """Lets the trackers end, for at most FINISH_SECONDS; twice is fine."""
        if self._started is not None:
            self._started[1].finish()
            self._started = None

    def _of(self, spec: TrainingRunSpec, uid: str) -> Trackers | None:
        """The trackers that the run asks for now; others are started when it is edited."""
        wanted = spec.tracking
        if self._started is not None and self._started[0] != wanted:
            self.finish()
        if wanted is None:
            return None
        if self._started is None:
            trackers = Trackers(
                self._made(wanted, uid), warn=self._warn, finish_seconds=FINISH_SECONDS
            )
            trackers.start(self._config(spec, uid))
            self._started = (wanted, trackers)
        return self._started[1]

    def _made(self, wanted: Tracking, uid: str) -> list[Tracker]:
        run = TrackedRun(uid, wanted.project, wanted.run_name or self._run[1])
        temporary = Path(self._environment.get("HOME", "/tmp")) / "wandb"
        found: list[Tracker] = []
        try:
            if (one := wanted.wandb) is not None:
                found.append(
                    WeightsAndBiases(
                        run,
                        temporary,
                        entity=one.entity,
                        base_url=one.base_url,
                        mode="offline" if one.mode == "Offline" else "online",
                        api_key=self._environment.get(WANDB_KEY) or None,
                    )
                )
            if (server := wanted.mlflow) is not None:
                token = self._environment.get(MLFLOW_TOKEN, "")
                found.append(MLflow(run, server.tracking_uri, token=token))
            if wanted.tensor_board is not None:
                boards = Path(self._environment.get("ESPALIER_BOARDS", BOARDS_PATH))
                found.append(TensorBoard(run, boards))
            if wanted.trackio is not None:
                files = Path(self._environment.get("ESPALIER_TRACKIO", TRACKIO_PATH))
                found.append(Trackio(run, files))
        except (ConfigurationError, OSError) as error:
            raise UserError(
                "TrackingInvalid", str(error), "Mend or remove that part of spec.tracking"
            ) from error
        return found

    def _config(self, spec: TrainingRunSpec, uid: str) -> dict[str, Any]:
        """The whole spec, defaults filled in, and whose it is."""
        namespace, name = self._run
        return {"namespace": namespace, "run": name, "uid": uid, "spec": spec.wire()}

    def _warn(self, message: str) -> None:
        self._journal.event("tracker-failed", detail=message)
