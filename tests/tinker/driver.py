"""What users of Tinker's SDK write. Runs in the SDK's environment: nothing of Espalier is there.

``python driver.py SCENARIO JSON``; prints what it found as JSON objects, one a line.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import tinker
from tinker import types

PROMPT = [72, 105, 33]
PARAMS = types.SamplingParams(max_tokens=4, seed=1)


def tell(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def rest() -> tinker.RestClient:
    return tinker.ServiceClient().create_rest_client()


def datum(tokens: list[int], weight: float = 1.0) -> types.Datum:
    """A text to be learnt: every token but the first is a target."""
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
            "weights": types.TensorData(data=[weight] * (len(tokens) - 1), dtype="float32"),
        },
    )


def sample(
    client: tinker.SamplingClient, prompt: list[int] = PROMPT, **more: Any
) -> types.SampleResponse:
    return client.sample(types.ModelInput.from_ints(prompt), 2, PARAMS, **more).result()


def failure(call: Any) -> dict[str, str]:
    """How a call fails: the class of its error, and what it says."""
    try:
        call()
    except Exception as error:
        found = {"kind": type(error).__name__, "says": str(error)}
        if category := getattr(error, "category", None):
            found["category"] = str(getattr(category, "value", category))
        return found
    return {"kind": "none", "says": ""}


def samples_a_base(given: dict[str, Any]) -> None:
    """Sampling with everything that a request can ask for."""
    client = tinker.ServiceClient().create_sampling_client(base_model=given["base"]).result()
    found = sample(
        client, include_prompt_logprobs=True, topk_prompt_logprobs=2, topk_sample_logprobs=3
    )
    tell(
        tokens=[list(map(int, one.tokens)) for one in found.sequences],
        logprobs=[len(one.logprobs or []) for one in found.sequences],
        reasons=[one.stop_reason for one in found.sequences],
        ids=len({one.sequence_id for one in found.sequences}),
        prompt=[lp if lp is None else round(lp, 3) for lp in found.prompt_logprobs or []],
        topk=[len(row) if row else 0 for row in found.topk_prompt_logprobs or []],
        drawn=[[len(row) for row in one.topk_logprobs or []] for one in found.sequences],
        again=[list(map(int, one.tokens)) for one in sample(client).sequences],
        scored=client.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result(),
        base=client.get_base_model(),
    )


def makes_a_model(given: dict[str, Any]) -> None:
    """A model of a base, its information, and the lists it is in."""
    client = tinker.ServiceClient(user_metadata={"team": "a"})
    training = client.create_lora_training_client(
        given["base"], rank=4, seed=7, user_metadata={"purpose": "test"}
    ).result()
    info = training.get_info()
    runs = rest().list_training_runs().result()
    tell(
        model=training.model_id,
        rank=info.lora_rank,
        name=info.model_data.model_name,
        runs=[
            (run.training_run_id, run.base_model, run.lora_rank, run.user_metadata)
            for run in runs.training_runs
        ],
        capabilities=[
            m.model_name for m in rest().get_server_capabilities().result().supported_models
        ],
    )


def rollouts(found: types.SampleResponse, prompt: list[int] = PROMPT) -> list[types.Datum]:
    """What rl_loop trains on: the samples, the first of which was better than the second."""
    data = []
    for one, advantage in zip(found.sequences, (1.0, -1.0), strict=True):
        drawn, given = [int(token) for token in one.tokens], len(prompt) - 1
        length = given + len(drawn)
        inputs = {
            "target_tokens": ([*prompt[1:], *drawn], "int64"),
            "logprobs": ([0.0] * given + [float(value) for value in one.logprobs or []], "float32"),
            "advantages": ([0.0] * given + [advantage] * len(drawn), "float32"),
        }
        data.append(
            types.Datum(
                model_input=types.ModelInput.from_ints([*prompt, *drawn[:-1]]),
                loss_fn_inputs={
                    name: types.TensorData(data=values[:length], dtype=dtype, shape=[length])
                    for name, (values, dtype) in inputs.items()
                },
            )
        )
    return data


def scores(training: tinker.TrainingClient) -> list[float]:
    """The log-probs of a text, by the weights as they are."""
    found = training.forward([datum([65, 66, 67, 68])], "cross_entropy").result()
    return [float(value) for value in found.loss_fn_outputs[0]["logprobs"].data]


def loops(given: dict[str, Any]) -> None:
    """rl_loop: sample, train, save, sample the saved weights, and go on from them later."""
    client = tinker.ServiceClient()
    training = client.create_lora_training_client(given["base"], rank=4, seed=7).result()
    adam = types.AdamParams(learning_rate=0.01, eps=1e-8)
    tell(model=training.model_id)
    first = training.save_weights_for_sampler("000000").result().path
    sampler = client.create_sampling_client(model_path=first).result()
    before = scores(training)
    losses = []
    for _ in range(2):
        found = sample(sampler)
        gradients = training.forward_backward(rollouts(found), "importance_sampling")
        step = training.optim_step(adam)
        losses.append(gradients.result().metrics["loss:sum"])
        tell(metrics=sorted(step.result().metrics or {}))
        sampler = training.save_weights_and_get_sampling_client().result()
    state = training.save_state("two", ttl_seconds=7200).result().path
    named = training.save_weights_for_sampler("two").result().path
    after = scores(training)
    sample(client.create_sampling_client(model_path=named).result())
    inflight = training.save_weights_and_get_sampling_client(kind="inflight").result()
    sample(inflight)
    resumed = client.create_training_client_from_state_with_optimizer(state).result()
    fresh = client.create_training_client_from_state(state).result()
    adams = [scores(one) for one in (resumed, fresh)]
    for one in (training, resumed, fresh):
        one.forward_backward([datum([65, 66, 67, 68])], "cross_entropy")
        one.optim_step(adam).result()
    tell(
        paths=[first, state, named],
        losses=losses,
        before=before,
        after=after,
        loaded=adams,
        stepped=[scores(one) for one in (training, resumed, fresh)],
        resumed=resumed.model_id,
        forked=resumed.save_weights_for_sampler("three").result().path,
    )


def two_steps(given: dict[str, Any]) -> None:
    """A model made on demand, two steps on what it sampled, and a sample of what was saved."""
    client = tinker.ServiceClient()
    training = client.create_lora_training_client(given["base"], rank=4, seed=7).result()
    tell(model=training.model_id)
    for _ in range(2):
        sampler = training.save_weights_and_get_sampling_client().result()
        found = sample(sampler, prompt=given["prompt"])
        gradients = training.forward_backward(
            rollouts(found, prompt=given["prompt"]), "importance_sampling"
        )
        training.optim_step(types.AdamParams(learning_rate=0.01, eps=1e-8)).result()
        scored = [output["logprobs"].data for output in gradients.result().loss_fn_outputs]
        tell(
            sampled=[[float(value) for value in one.logprobs or []] for one in found.sequences],
            scored=[[float(value) for value in one] for one in scored],
        )
    state = training.save_state("two").result().path
    named = training.save_weights_for_sampler("two").result().path
    saved = client.create_sampling_client(model_path=named).result()
    tell(paths=[state, named], samples=len(sample(saved, prompt=given["prompt"]).sequences))


def keeps(given: dict[str, Any]) -> None:
    """Lists of what is saved, and what can be done with it."""
    api = rest()
    state, named = given["state"], given["named"]
    saved = api.list_checkpoints(given["model"]).result().checkpoints
    tell(
        listed=[(one.checkpoint_id, one.checkpoint_type, one.expires_at is None) for one in saved],
        mine=len(api.list_user_checkpoints().result().checkpoints),
        info=api.get_weights_info_by_tinker_path(state).result().model_dump(mode="json"),
        session=len(api.get_session(given["model"].partition(":")[0]).result().training_run_ids),
        last=api.get_training_run(given["model"]).result().last_checkpoint is not None,
    )
    api.set_checkpoint_ttl_from_tinker_path(state, None).result()
    api.delete_checkpoint_from_tinker_path(named).result()
    left = api.list_checkpoints(given["model"]).result().checkpoints
    gone = failure(lambda: tinker.ServiceClient().create_sampling_client(model_path=named).result())
    public = failure(lambda: api.publish_checkpoint_from_tinker_path(state).result())
    api.unpublish_checkpoint_from_tinker_path(state).result()
    tell(
        left=[(one.checkpoint_id, one.expires_at is None) for one in left],
        gone=gone["kind"],
        public=public,
    )


def saves(given: dict[str, Any]) -> None:
    """A step, and what it came to under a name of each kind."""
    training = tinker.ServiceClient().create_lora_training_client(given["base"], rank=4).result()
    training.forward_backward([datum([65, 66, 67, 68])], "cross_entropy")
    training.optim_step(types.AdamParams(learning_rate=0.01)).result()
    state = training.save_state("one").result().path
    tell(model=training.model_id, state=state)
    tell(named=training.save_weights_for_sampler("one").result().path)


def resumes(given: dict[str, Any]) -> None:
    """Work that goes on while what it talks to dies: says a line, and waits for one, in between."""
    training = tinker.ServiceClient().create_lora_training_client(given["base"], rank=4).result()
    tell(model=training.model_id)
    adam = types.AdamParams(learning_rate=0.01)
    for _ in range(int(given["steps"])):
        gradients = training.forward_backward([datum([65, 66, 67, 68])] * 2, "cross_entropy")
        training.optim_step(adam).result()
        gradients.result()
    tell(scores=scores(training), path=training.save_state("end").result().path)


def trains_existing(given: dict[str, Any]) -> None:
    """A model that there is, by its name."""
    client = tinker.ServiceClient()
    wrong = failure(lambda: client.create_lora_training_client(given["name"], rank=32).result())
    training = client.create_lora_training_client(given["name"], rank=4).result()
    training.forward_backward([datum([65, 66, 67, 68])], "cross_entropy")
    training.optim_step(types.AdamParams(learning_rate=0.01)).result()
    sampler = training.save_weights_and_get_sampling_client().result()
    head = client.create_sampling_client(base_model=given["name"]).result()
    tell(wrong=wrong, model=training.model_id, sampled=len(sample(sampler).sequences))
    tell(head=len(sample(head).sequences), base=head.get_base_model())


def custom_loss(given: dict[str, Any]) -> None:
    """A loss in the client's own torch, and a command that cannot be applied."""
    training = tinker.ServiceClient().create_lora_training_client(given["base"], rank=4).result()

    def loss(data: list[types.Datum], logprobs: list[Any]) -> Any:
        total = sum((one[1:] ** 2).sum() for one in logprobs)
        return total, {"mean": float(total) / len(data)}

    found = training.forward_backward_custom([datum([65, 66, 67, 68])] * 2, loss).result()
    training.optim_step(types.AdamParams(learning_rate=0.01)).result()
    bad = types.Datum(
        model_input=types.ModelInput.from_ints([1, 2]),
        loss_fn_inputs={"target_tokens": types.TensorData(data=[1], dtype="int64")},
    )
    lengths = failure(lambda: training.forward_backward([bad], "cross_entropy").result())
    name = failure(lambda: training.save_state("a/b").result())
    life = failure(lambda: training.save_state("a", ttl_seconds=5).result())
    empty = failure(lambda: training.optim_step(types.AdamParams()).result())
    training.forward_backward([datum([65, 66, 67, 68])], "cross_entropy").result()
    tell(
        metrics={name: math.isfinite(value) for name, value in found.metrics.items()},
        refused={"lengths": lengths, "name": name, "life": life, "empty": empty},
        after=len(training.optim_step(types.AdamParams()).result().metrics or {}) > 0,
    )


def learns(given: dict[str, Any]) -> None:
    """Tokens with an even number are worth more: a policy that learns to write them."""
    client = tinker.ServiceClient()
    training = client.create_lora_training_client(given["base"], rank=8, seed=1).result()
    tell(model=training.model_id)
    prompt, rewards, gaps = [5, 6, 7], [], []
    for _ in range(int(given["steps"])):
        sampler = training.save_weights_and_get_sampling_client().result()
        params = types.SamplingParams(max_tokens=4, stop=[])
        found = sampler.sample(types.ModelInput.from_ints(prompt), 32, params).result()
        drawn = [[int(token) for token in one.tokens] for one in found.sequences]
        worth = [sum(token % 2 == 0 for token in one) / len(one) for one in drawn]
        mean, data = sum(worth) / len(worth), []
        for one, sequence, reward in zip(drawn, found.sequences, worth, strict=True):
            before, length = len(prompt) - 1, len(prompt) - 1 + len(one)
            sampled = [float(value) for value in sequence.logprobs or []]
            inputs = {
                "target_tokens": ([*prompt[1:], *one], "int64"),
                "logprobs": ([0.0] * before + sampled, "float32"),
                "advantages": ([0.0] * before + [reward - mean] * len(one), "float32"),
            }
            data.append(
                types.Datum(
                    model_input=types.ModelInput.from_ints([*prompt, *one[:-1]]),
                    loss_fn_inputs={
                        name: types.TensorData(data=values, dtype=dtype, shape=[length])
                        for name, (values, dtype) in inputs.items()
                    },
                )
            )
        gradients = training.forward_backward(data, "importance_sampling")
        training.optim_step(types.AdamParams(learning_rate=0.02)).result()
        scored = [output["logprobs"].data for output in gradients.result().loss_fn_outputs]
        for values, sequence in zip(scored, found.sequences, strict=True):
            pairs = zip(list(values)[len(prompt) - 1 :], sequence.logprobs or [], strict=True)
            gaps.append(max(abs(float(a) - float(b)) for a, b in pairs))
        rewards.append(mean)
    tell(rewards=rewards, gap=max(gaps))


def makes_mistakes(given: dict[str, Any]) -> None:
    """What is refused, and how."""
    base = given["base"]
    client = tinker.ServiceClient()
    sampler = client.create_sampling_client(base_model=base).result()
    text = types.ModelInput.from_ints(PROMPT)
    image = types.ModelInput(
        chunks=[types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=4)]
    )
    targets = types.TensorData(data=[1, 2], dtype="int64", shape=[2, 1])
    recording = client.create_sampling_client(base_model=base, record_stability_info=True).result()

    def made(**more: Any) -> Any:
        return lambda: client.create_lora_training_client(base, **more).result()

    calls = {
        "unknown base": lambda: client.create_lora_training_client("Qwen/none").result(),
        "rank": made(rank=512),
        "only the head": made(train_attn=False, train_mlp=False),
        "seed": made(seed=-1),
        "optimizer": made(optimizer=types.DimuonOptimizerConfig()),
        "no project": lambda: tinker.ServiceClient(project_id="none").holder,
        "another's project": lambda: tinker.ServiceClient(project_id="other").holder,
        "no path": lambda: client.create_sampling_client(
            model_path="tinker://default.arith/weights/none"
        ).result(),
        "another's path": lambda: client.create_training_client_from_state(
            "tinker://other.arith/weights/none"
        ).result(),
        "image": lambda: sampler.sample(image, 1, PARAMS).result(),
        "targets": lambda: sampler.sample(text, 1, PARAMS, target_prompt_logprobs=targets).result(),
        "stability": lambda: recording.sample(text, 1, PARAMS).result(),
        "no run": lambda: rest().get_training_run("default.none").result(),
        "billing": lambda: rest().get_session("gone").result(),
    }
    tell(**{name: failure(call) for name, call in calls.items()})


def main() -> None:
    globals()[sys.argv[1]](json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
