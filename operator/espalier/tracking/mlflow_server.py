"""The tracker of an MLflow server, by its REST API.

Six requests of a stable API: MLflow's client library would bring a web framework and two clouds'
SDKs into the runner's image, and pins packages in other versions than vLLM does.
"""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from espalier.client.errors import ConfigurationError
from espalier.tracking.tracker import TrackedRun

ID_TAG = "espalier.run_id"
CHANGED = "changed/"
_SECONDS = 15.0
_API = "/api/2.0/mlflow/"
# MLflow's limits on one request, a name and a value.
_PARAMS_MOST, _METRICS_MOST, _NAME_CHARS, _VALUE_CHARS = 100, 1000, 250, 5000
_NOT_IN_A_NAME = re.compile(r"[^\w.\- :/]")


class MLflowError(Exception):
    """The server refused, or cannot be reached."""


class MLflow:
    """One run of MLflow for all starts of a run, found by a tag that holds the run's id.

    Args:
        run: its project is MLflow's experiment.
        uri: of the server, http or https.
        token: sent as a bearer's, if there is one.
        user: and password of basic authentication, if there are.
    """

    def __init__(
        self,
        run: TrackedRun,
        uri: str,
        *,
        token: str = "",
        user: tuple[str, str] | None = None,
    ) -> None:
        if urllib.parse.urlsplit(uri).scheme not in ("http", "https"):
            raise ConfigurationError(
                f"the tracking URI of MLflow is {uri!r}: give that of a server, such as "
                "http://mlflow:5000"
            )
        self._run, self._uri = run, uri.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        elif user is not None:
            pair = base64.b64encode(":".join(user).encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"
        self._id = ""

    @classmethod
    def from_environment(cls, run: TrackedRun, environment: Mapping[str, str]) -> MLflow:
        """By MLflow's own variables; ConfigurationError if ``MLFLOW_TRACKING_URI`` is not set."""
        uri = environment.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise ConfigurationError(
                "tracker mlflow needs a server: set MLFLOW_TRACKING_URI, such as http://mlflow:5000"
            )
        name = environment.get("MLFLOW_TRACKING_USERNAME", "")
        user = (name, environment.get("MLFLOW_TRACKING_PASSWORD", "")) if name else None
        return cls(run, uri, token=environment.get("MLFLOW_TRACKING_TOKEN", ""), user=user)

    def start(self, config: Mapping[str, Any]) -> None:
        """Goes on in the run of that id, or begins it; the configuration is its parameters.

        MLflow's parameters never change: what a run was started again with differently is in tags
        that begin with ``changed/``.
        """
        experiment = self._experiment()
        found = self._found(experiment) or self._created(experiment)
        self._id = found["info"]["run_id"]
        self._post("runs/update", {"run_id": self._id, "status": "RUNNING"})
        known = {param["key"]: param["value"] for param in found["data"].get("params", ())}
        wanted = {_name(name): _value(value) for name, value in flat(config)}
        params = [{"key": n, "value": v} for n, v in wanted.items() if n not in known]
        changed = [
            {"key": f"{CHANGED}{name}"[:_NAME_CHARS], "value": value}
            for name, value in wanted.items()
            if name in known and known[name] != value
        ]
        for first in range(0, len(params), _PARAMS_MOST):
            self._batch(params=params[first : first + _PARAMS_MOST])
        for first in range(0, len(changed), _PARAMS_MOST):
            self._batch(tags=changed[first : first + _PARAMS_MOST])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A point for each metric."""
        if not self._id:
            raise MLflowError("the run has not been started")
        now = int(time.time() * 1000)
        points = [
            {"key": _name(name), "value": value, "timestamp": now, "step": step}
            for name, value in metrics.items()
        ]
        for first in range(0, len(points), _METRICS_MOST):
            self._batch(metrics=points[first : first + _METRICS_MOST])

    def finish(self) -> None:
        """Marks the run as finished; a later start takes it up again."""
        ended, self._id = self._id, ""
        if ended:
            end = {"run_id": ended, "status": "FINISHED", "end_time": int(time.time() * 1000)}
            self._post("runs/update", end)

    def _experiment(self) -> str:
        name = urllib.parse.quote(self._run.project)
        try:
            found = self._call(f"experiments/get-by-name?experiment_name={name}")
            return str(found["experiment"]["experiment_id"])
        except MLflowError as error:
            if "RESOURCE_DOES_NOT_EXIST" not in str(error):
                raise
        made = self._post("experiments/create", {"name": self._run.project})
        return str(made["experiment_id"])

    def _found(self, experiment: str) -> dict[str, Any] | None:
        asked = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{ID_TAG}` = '{self._run.id}'",
            "max_results": 1,
        }
        runs: list[dict[str, Any]] = self._post("runs/search", asked).get("runs") or []
        return runs[0] if runs else None

    def _created(self, experiment: str) -> dict[str, Any]:
        new = {
            "experiment_id": experiment,
            "run_name": self._run.shown,
            "start_time": int(time.time() * 1000),
            "tags": [{"key": ID_TAG, "value": self._run.id}],
        }
        made: dict[str, Any] = self._post("runs/create", new)["run"]
        return made

    def _batch(self, **what: list[dict[str, Any]]) -> None:
        self._post("runs/log-batch", {"run_id": self._id, **what})

    def _post(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call(route, json.dumps(body).encode())

    def _call(self, route: str, content: bytes | None = None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._uri}{_API}{route}", content, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                read: dict[str, Any] = json.loads(answer.read() or b"{}")
                return read
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            raise MLflowError(f"{route.split('?', maxsplit=1)[0]}: {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise MLflowError(f"{self._uri}: {error}") from error


def flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a configuration, by names such as ``sampling.max_tokens``."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _name(name: str) -> str:
    return _NOT_IN_A_NAME.sub("_", name)[:_NAME_CHARS]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_VALUE_CHARS]
