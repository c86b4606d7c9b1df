"""Where a run reports its metrics: files, the console, and trackers of others."""

from espalier.tracking.console import Console
from espalier.tracking.files import JsonLines
from espalier.tracking.mlflow_server import MLflow
from espalier.tracking.tensorboard_events import TensorBoard
from espalier.tracking.tracker import TrackedRun, Tracker
from espalier.tracking.trackers import track
from espalier.tracking.trackio_run import Trackio
from espalier.tracking.wandb_run import WeightsAndBiases

__all__ = [
    "Console",
    "JsonLines",
    "MLflow",
    "TensorBoard",
    "TrackedRun",
    "Tracker",
    "Trackio",
    "WeightsAndBiases",
    "track",
]
