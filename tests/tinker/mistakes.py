"""What users of Tinker's SDK do wrong, and how it fails. Runs in the SDK's environment.

``python mistakes.py JSON``; prints what became of each mistake as JSON objects, one a line. After
``{"wait": ...}`` it waits for a line, while the test takes something away.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import tinker
from tinker import types

TEXT = types.ModelInput.from_ints([72, 105, 33])
SAMPLING = types.SamplingParams(max_tokens=4, seed=1)


def datum(tokens: list[int]) -> types.Datum:
    length = len(tokens) - 1
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[length]),
            "weights": types.TensorData(data=[1.0] * length, dtype="float32", shape=[length]),
        },
    )


DATA = [datum([72, 105, 33, 10])]


def tell(mistake: str, call: Callable[[], Any]) -> None:
    """How a call fails, and after how many seconds."""
    begun = time.monotonic()
    found: dict[str, Any] = {"kind": "none", "says": ""}
    try:
        call()
    except Exception as error:
        category = getattr(error, "category", "")
        found = {"kind": type(error).__name__, "says": str(error)}
        found["category"] = str(getattr(category, "value", category))
    print(json.dumps({mistake: found | {"seconds": time.monotonic() - begun}}), flush=True)


def wait(what: str, told: str) -> None:
    print(json.dumps({"wait": what, "told": told}), flush=True)
    sys.stdin.readline()


def main(base: str, never_issued: str) -> None:
    warnings.simplefilter("ignore")
    other = tinker.ServiceClient(api_key=never_issued)
    tell("never issued", other.get_server_capabilities)
    client = tinker.ServiceClient()
    training = client.create_lora_training_client(base, rank=4).result()

    def train(loss: str, **config: Any) -> Callable[[], Any]:
        return lambda: training.forward_backward(DATA, loss, **config).result()

    def step(**adam: Any) -> Callable[[], Any]:
        def call() -> Any:
            training.forward_backward(DATA, "cross_entropy").result()
            stepped = training.optim_step(types.AdamParams(**adam)).result()
            # What a refused step was given is not left behind.
            assert stepped.metrics["tokens/trained"] == len(DATA[0].loss_fn_inputs["weights"].data)

        return call

    tell("unknown loss", train("nonsense"))
    tell("unknown config", train("cross_entropy", loss_fn_config={"epsilom": 0.1}))
    tell("learning rate NaN", step(learning_rate=math.nan))
    tell("learning rate below 0", step(learning_rate=-1.0))
    tell("beta above 1", step(learning_rate=1e-3, beta1=1.5))
    tell("learning rate infinite", step(learning_rate=math.inf))
    tell("epsilon 0", step(learning_rate=1e-3, eps=0.0))
    tell("after mistakes", step(learning_rate=1e-3))
    first = training.save_state("first").result().path

    # Another client of the same model, by the name of its TrainableModel.
    session, _, number = training.model_id.partition(":train:")
    name = f"tk-{session.rpartition('.')[2]}-{number}"
    second = tinker.ServiceClient().create_lora_training_client(name, rank=4).result()
    tell("second client", lambda: second.forward_backward(DATA, "cross_entropy").result())
    tell("second steps", lambda: second.optim_step(types.AdamParams()).result())
    tell("second reads", lambda: second.forward(DATA, "cross_entropy").result())

    def sampling() -> Any:
        return training.save_weights_and_get_sampling_client().result()

    def sample(client: Any) -> Callable[[], Any]:
        return lambda: client.sample(TEXT, 1, SAMPLING).result()

    evicted = sampling()
    evicted.sample(TEXT, 1, SAMPLING).result()
    wait("the head to be pinned", training.model_id)
    tell("held", step(learning_rate=1e-3))
    tell("earlier weights", lambda: training.load_state(first).result())
    wait("the first checkpoint to be deleted", training.model_id)
    tell("evicted sampler", sample(evicted))
    sampler = sampling()
    tell("other sampler", sample(sampler))
    wait("the model to be deleted", training.model_id)
    tell("deleted model", train("cross_entropy"))
    tell("its sampler", sample(sampler))
    wait("the key to be revoked", training.model_id)
    tell("revoked", train("cross_entropy"))
    tell("revoked, sampling", sample(sampler))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
