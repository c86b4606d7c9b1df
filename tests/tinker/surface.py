"""Every public method of Tinker's SDK, called as its users call it. Runs in the SDK's environment.

``python surface.py JSON``; prints by method what became of it: ``works``, or the error it raised.
Each method is called in its plain form and, where it has one, in its ``_async`` form.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import tinker
from tinker import types
from tinker.lib.api_future_impl import QueueState

BEGUN = time.monotonic()
CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")
ADAM = types.AdamParams(learning_rate=1e-3, beta1=0.9, beta2=0.95, eps=1e-8)
SAMPLING = types.SamplingParams(max_tokens=4, seed=1)
TEXT = types.ModelInput.from_ints([72, 105, 33])


def datum(tokens: list[int]) -> types.Datum:
    """A text to be learnt: every token but the first is a target."""
    length = len(tokens) - 1
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[length]),
            "weights": types.TensorData(data=[1.0] * length, dtype="float32", shape=[length]),
        },
    )


DATA = [datum([72, 105, 33, 10]), datum([72, 101, 121])]


def quadratic(data: Any, logprobs: Any) -> Any:
    """A loss of one's own, on the user's machine."""
    loss = sum((one**2).sum() for one in logprobs)
    return loss, {"own:sum": float(loss.detach())}


def traced(logprobs: Any, weights: Any) -> Any:
    """A loss of one's own that the SDK takes apart itself."""
    loss = -(logprobs * weights).sum()
    return loss, {"custom/own:sum": loss}


async def settle(value: Any) -> Any:
    """What a call comes to, however many futures are around it."""
    while inspect.isawaitable(value) or hasattr(value, "result_async"):
        waits = hasattr(value, "result_async")
        value = await (value.result_async() if waits else value)
    return value


class Told(dict[str, str]):
    """What became of each method; printed as it comes, so that a call that hangs can be seen."""

    def __setitem__(self, method: str, outcome: str) -> None:
        super().__setitem__(method, outcome)
        print(json.dumps({method: outcome, "at": round(time.monotonic() - BEGUN, 1)}), flush=True)


class Surface:
    """Calls methods in one of their two forms, and keeps what became of each."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix
        self.found = Told()
        # The kind of client, also where the SDK gives out a future that acts as one.
        self.kind = ""

    def call(self, owner: Any, name: str, *given: Any, **more: Any) -> Any:
        """The value; None if the method failed, or has no such form."""
        known = name + self.suffix if hasattr(owner, name + self.suffix) else name
        label = f"{self.kind}.{known}"
        if owner is None:
            self.found[label] = "not reached"
        if not hasattr(owner, known):
            return None
        try:
            value = getattr(owner, known)(*given, **more)
            if self.suffix:
                value = asyncio.run(settle(value))
            while hasattr(value, "result") and not hasattr(value, "get_telemetry"):
                value = value.result()
        except Exception as error:
            self.found[label] = f"{type(error).__name__}: {error}"
            return None
        self.found[label] = "works"
        return value

    def local(self, name: str, call: Callable[[], Any]) -> Any:
        """The same for what is no method of an object at hand."""
        try:
            value = call()
            while hasattr(value, "result") and not hasattr(value, "get_telemetry"):
                value = value.result()
        except Exception as error:
            self.found[f"{self.kind}.{name}"] = f"{type(error).__name__}: {error}"
            return None
        self.found[f"{self.kind}.{name}"] = "works"
        return value


def service(surface: Surface, base: str) -> tuple[Any, Any]:
    surface.kind = "ServiceClient"
    client = tinker.ServiceClient(user_metadata={"team": "a"}, project_id="default")
    for name in ("get_server_capabilities", "get_telemetry", "get_console_url"):
        surface.call(client, name)
    surface.call(client, "create_sampling_client", base_model=base)
    training = surface.call(client, "create_lora_training_client", base, rank=4, seed=7)
    return client, training


def train(surface: Surface, client: Any, training: Any) -> dict[str, str]:
    """The paths of what was saved, by kind."""
    surface.kind, mark = "TrainingClient", surface.suffix or "_plain"
    for name in ("get_info", "get_tokenizer", "get_telemetry", "get_console_url"):
        surface.call(training, name)
    surface.call(training, "forward", DATA, "cross_entropy")
    surface.call(training, "forward_backward", DATA, "cross_entropy")
    surface.call(training, "optim_step", ADAM)
    surface.call(training, "forward_backward_custom", DATA, quadratic)
    surface.call(training, "optim_step", ADAM)
    if not surface.suffix:
        surface.kind = "ServiceClient"
        ranks = {"logprobs": 1, "weights": 1}
        loss = surface.call(client, "create_custom_loss", traced, ranks)
        surface.kind = "TrainingClient"
        if loss is not None:
            training.forward_backward_custom(DATA, loss).result()
            training.optim_step(ADAM).result()
    saved = surface.call(training, "save_state", f"state{mark}")
    named = surface.call(training, "save_weights_for_sampler", f"sampler{mark}")
    files = surface.call(training, "save_weights_external", f"files{mark}")
    surface.call(training, "save_weights_and_get_sampling_client")
    paths = {"state": saved and saved.path, "sampler": named and named.path}
    paths["files"] = files and files.path
    surface.call(training, "create_sampling_client", paths["sampler"])
    surface.call(training, "load_state", paths["state"])
    surface.call(training, "load_state_with_optimizer", paths["state"])
    surface.kind = "ServiceClient"
    surface.call(client, "create_training_client_from_state", paths["state"])
    surface.call(client, "create_training_client_from_state_with_optimizer", paths["state"])
    surface.call(client, "copy_weights", paths["state"])
    return paths


def sample(surface: Surface, client: Any, path: str) -> str:
    """The id of the sampler."""
    surface.kind = "SamplingClient"
    sampling = client.create_sampling_client(model_path=path)
    while hasattr(sampling, "result"):
        sampling = sampling.result()
    surface.call(sampling, "sample", TEXT, 2, SAMPLING)
    surface.call(sampling, "compute_logprobs", TEXT)
    for name in ("get_base_model", "get_tokenizer", "get_telemetry"):
        surface.call(sampling, name)
    handle = surface.call(sampling, "get_sampler_handle")
    surface.local("from_sampler_handle", lambda: tinker.SamplingClient.from_sampler_handle(handle))
    surface.local(
        "create", lambda: tinker.SamplingClient.create(client.holder, base_model="tiny/llama")
    )
    surface.call(sampling, "on_queue_state_change", QueueState.ACTIVE, None)
    return str(sampling._sampling_session_id)


def rest(surface: Surface, client: Any, run: str, paths: dict[str, str], sampler: str) -> None:
    surface.kind = "ServiceClient"
    lists = client.create_rest_client()
    surface.found["ServiceClient.create_rest_client"] = "works"
    surface.kind = "RestClient"
    state, named = paths["state"], paths["sampler"]
    session = run.partition(":")[0]
    for name in ("get_telemetry", "get_server_capabilities", "whoami"):
        surface.call(lists, name)
    for name in ("list_training_runs", "list_user_checkpoints", "list_sessions"):
        surface.call(lists, name)
    for name in ("get_training_run", "list_checkpoints"):
        surface.call(lists, name, run)
    archive = "get_checkpoint_archive_url_from_tinker_path"
    for name in ("get_training_run_by_tinker_path", "get_weights_info_by_tinker_path", archive):
        surface.call(lists, name, state)
    surface.call(lists, "get_checkpoint_archive_url", run, state.partition(f"{run}/")[2])
    surface.call(lists, "get_sampler", sampler)
    for name in ("get_session", "export_session_trace"):
        surface.call(lists, name, session)
    surface.call(lists, "assign_session_project", session, "default")
    if hasattr(lists, "search_sessions"):
        surface.call(lists, "search_sessions", types.SessionSearchRequest())
    surface.call(lists, "copy_weights", state, "default")
    surface.call(lists, "get_external_weights_urls", paths["files"])
    surface.call(lists, "publish_checkpoint_from_tinker_path", state)
    surface.call(lists, "unpublish_checkpoint_from_tinker_path", state)
    surface.call(lists, "set_checkpoint_ttl_from_tinker_path", state, 3600)
    surface.call(lists, "set_checkpoint_ttl_from_tinker_path", state, None)
    usage(surface, lists)
    surface.call(lists, "delete_checkpoint", run, state.partition(f"{run}/")[2])
    surface.call(lists, "delete_checkpoint_from_tinker_path", named)


def usage(surface: Surface, client: Any) -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    surface.call(client, "get_audit_log")
    surface.call(client, "get_billing_usage", since, datetime(2026, 2, 1, tzinfo=UTC))
    surface.call(client, "get_current_checkpoint_storage_usage")


def admin(surface: Surface) -> None:
    surface.kind = "AdminClient"
    client = tinker.AdminClient()
    surface.call(client, "get_telemetry")
    usage(surface, client)


def public() -> list[str]:
    """What there is in this version."""
    clients = [(name, getattr(tinker, name, None)) for name in CLIENTS]
    if clients[3][1] is None:
        from tinker.lib.public_interfaces import rest_client

        clients[3] = ("RestClient", rest_client.RestClient)
    return [
        f"{kind}.{name}"
        for kind, client in clients
        for name in dir(client)
        if not name.startswith("_") and callable(getattr(client, name, None))
    ]


def main(base: str) -> None:
    warnings.simplefilter("ignore")
    found: dict[str, str] = {}
    for suffix in ("", "_async"):
        surface = Surface(suffix)
        client, training = service(surface, base)
        paths = train(surface, client, training)
        sampler = sample(surface, client, paths["sampler"])
        rest(surface, client, training.model_id, paths, sampler)
        if hasattr(tinker, "AdminClient"):
            admin(surface)
        surface.kind = "ServiceClient"
        if not suffix:
            surface.call(client, "close", "success")
        found = {**surface.found, **found}
    print(json.dumps({"methods": public(), "found": found}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1])["base"])
