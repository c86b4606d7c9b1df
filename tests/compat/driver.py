"""Runs inside HUD's environment: each method of the client once; prints [method, result] lines.

``python driver.py SCENARIO '{"model": ...}'``. Nothing of Espalier can be imported here.
"""

import asyncio
import json
import sys
import uuid
from typing import Any

import mcp.types as mcp_types
from hud import Environment, TrainingClient
from hud.agents import create_agent
from hud.eval.job import Job, trace_enter, trace_exit
from hud.eval.run import Grade, Run
from hud.telemetry.context import set_trace_context
from hud.train import TrajectoryPayload, TrajectorySample
from hud.utils.exceptions import HudNetworkError, HudRequestError
from hud.utils.platform import PlatformClient


def payload(reward, output=(5, 6), prompt=(1, 2, 3), turns=1):
    samples = [
        TrajectorySample(
            prompt_token_ids=[*prompt, turn],
            output_token_ids=list(output),
            output_logprobs=[-5.0] * len(output),
        )
        for turn in range(turns)
    ]
    return TrajectoryPayload(samples=samples, reward=reward)


async def surface(model):
    """Every public method, in the order of a training session."""
    client = TrainingClient(model)
    batch = [payload(1.0), payload(0.0, output=(7,)), payload(0.5, turns=2), payload(0.0)]
    yield "available_losses", sorted(await client.available_losses())
    yield "head (base)", await client.head()
    first = await client.forward_backward(batch, group_size=2, reward_scale=2.0, num_substeps=2)
    yield "forward_backward", [first.num_datums, "loss:sum" in first.metrics]
    step = await client.optim_step(learning_rate=1e-2)
    yield "optim_step", [step.step, step.checkpoint_id, step.model]
    head = await client.head()
    yield "head", [head.id, head.loss_fn, head.learning_rate]
    forward = await client.forward(batch, group_size=2)
    yield "forward", [[d.traj_idx, d.group_idx, len(d.logprobs)] for d in forward.data]
    weights = [[0.1] * len(d.logprobs) for d in forward.data]
    back = await client.backward(forward.forward_id, weights, metrics={"mine": 2.0})
    yield "backward", [back.num_datums, back.metrics["mine"]]
    custom = await client.forward_backward_custom(batch, importance, group_size=2)
    yield "forward_backward_custom", [custom.num_datums, custom.metrics["tokens"]]
    second = await client.step(
        batch, learning_rate=1e-2, loss_fn="ppo", loss_fn_config={"epsilon": 0.2}
    )
    yield "step", [second.step, second.checkpoint_id]
    found = await client.checkpoints()
    yield "checkpoints", [[c.id, c.prev_model_checkpoint_id, c.is_active] for c in found]
    yield (
        "checkpoint fields",
        {
            name: getattr(found[0], name)
            for name in ("num_traces", "num_datums", "num_tokens", "mean_reward", "loss_fn")
        }
        | {name: found[0].metrics[name] for name in found[0].metrics if "reward" in name},
    )
    yield "set_head", await client.set_head(found[0].id)
    await client.forward_backward(batch, group_size=2)
    third = await client.optim_step(learning_rate=1e-2)
    tree = {c.id: c for c in await client.checkpoints()}
    node = tree[third.checkpoint_id]
    yield "branch", [node.prev_model_checkpoint_id == found[0].id, node.is_active, len(tree)]


def importance(data, logprobs):
    """A loss of the caller's own: rewards less their mean, weighted by the ratio of policies."""
    import torch  # seconds; only this scenario needs it

    mean = sum(datum.reward for datum in data) / len(data)
    loss, tokens = torch.zeros(()), 0.0
    for datum, current in zip(data, logprobs, strict=True):
        ratio = (current - torch.tensor(datum.sampling_logprobs)).exp()
        loss = loss - (ratio * torch.tensor(datum.mask)).sum() * (datum.reward - mean)
        tokens += sum(datum.mask)
    return loss, {"tokens": tokens}


async def until_answered(call):
    """A loop of a careful user: the same call again for as long as the network or a 503 fails it.

    Returns how often it was sent, and its answer.
    """
    for sent in range(1, 200):
        try:
            return sent, await call()
        except HudNetworkError:
            pass
        except HudRequestError as error:
            if error.status_code != 503:
                raise
        await asyncio.sleep(0.05)
    raise TimeoutError("never answered")


async def resends(model, rounds):
    """Each round: a batch, the same batch again on purpose, a step. What is lost is sent again."""
    client = TrainingClient(model)
    batch = [payload(1.0), payload(0.0, output=(7,))]
    for number in range(rounds):
        sent = []
        for _ in "12":
            times, _result = await until_answered(
                lambda: client.forward_backward(batch, group_size=2)
            )
            sent.append(times)
        times, step = await until_answered(lambda: client.optim_step(learning_rate=1e-3))
        sent.append(times)
        yield number, {"sent": sent, "step": step.step, "checkpoint": step.checkpoint_id}


async def redone(model):
    """step() as a whole, again after its answer was lost."""
    client = TrainingClient(model)
    batch = [payload(1.0), payload(0.0, output=(9,))]
    sent, step = await until_answered(lambda: client.step(batch, learning_rate=1e-3, group_size=2))
    yield "step", {"sent": sent, "step": step.step}


async def rolled_out(agent, job, model, group, reward, *, stop="done"):
    """One rollout of two turns, reported as the client's own runner does it."""
    trace = uuid.uuid4().hex
    await trace_enter(trace, job_id=job.id, group_id=group, task_slug=f"task-{group}", model=model)
    with set_trace_context(trace):
        text = mcp_types.TextContent(type="text", text="1+1?")
        prompt = mcp_types.PromptMessage(role="user", content=text)
        state = await agent._initialize_state(prompt=[prompt])
        first = await agent.get_response(state)
        state.messages.append({"role": "user", "content": "and again?"})
        second = await agent.get_response(state)
    run = Run(None, "task", {})
    run.trace.trace_id, run.trace.stop_reason = trace, stop
    run.trace.status = "error" if stop == "timeout" else "completed"
    run.trace.extra = {"seed": 7}
    run.grade = Grade(reward=reward)
    run.group_id = group
    await trace_exit(run)
    return trace, [first.sample, second.sample]


async def forked(source, sampled):
    """Forks a model and uses the fork at once, as a script does; nothing is sent again."""
    wanted = {"source_model_id": source, "name": "arith-two"}
    made = PlatformClient.from_settings().post("/models/fork", dict[str, Any], json=wanted)
    batch = [payload(1.0), payload(0.0, output=(7,))]
    if sampled:
        kwargs = {"max_tokens": 8, "extra_body": {"return_token_ids": True}}
        agent = create_agent(made["model_name"], completion_kwargs=kwargs)
        job = await Job.start("first", group=1)
        _, samples = await rolled_out(agent, job, made["model_name"], "a", 1.0)
        turns = [
            TrajectorySample(
                prompt_token_ids=sample.prompt_token_ids,
                output_token_ids=sample.output_token_ids,
                output_logprobs=sample.output_logprobs,
            )
            for sample in samples
        ]
        batch[0] = TrajectoryPayload(samples=turns, reward=1.0)
    step = await TrainingClient(made["id"]).step(batch, learning_rate=1e-3)
    yield "step", [step.step, step.checkpoint_id, len(batch[0].samples)]


async def traces(model):
    """Rollouts through the gateway in a job, trained on by their ids, mixed with inline ones."""
    client = TrainingClient(model)
    kwargs = {"max_tokens": 8, "extra_body": {"return_token_ids": True}}
    agent = create_agent(model, completion_kwargs=kwargs)
    job = await Job.start("arithmetic", group=2)
    (a1, samples), (a2, _), (b1, _), (b2, _) = [
        await rolled_out(agent, job, model, group, reward)
        for group, reward in (("a", 1.0), ("a", 0.0), ("b", 0.5), ("b", 0.25))
    ]
    late, _ = await rolled_out(agent, job, model, "c", 1.0, stop="timeout")
    yield "sample", [len(s.output_token_ids) == len(s.output_logprobs) > 0 for s in samples]
    kept = samples[0]
    yield "continued", [kept.prompt_token_ids, kept.output_token_ids]
    mixed = [a1, payload(0.5), b1, b2]
    found = await client.forward(mixed, group_size=2)
    yield "mixed", [[d.traj_idx, d.group_idx, d.reward, len(d.mask)] for d in found.data]
    result = await client.forward_backward([a1, a2, b1, b2], group_size=2)
    yield "trained", result.num_datums
    yield "trace", a1
    await client.optim_step(learning_rate=1e-3)
    (c1, (_, said)), (c2, _) = [
        await rolled_out(agent, job, model, "d", reward) for reward in (1.0, 0.5)
    ]
    inline = TrajectorySample(
        prompt_token_ids=said.prompt_token_ids,
        output_token_ids=said.output_token_ids,
        output_logprobs=said.output_logprobs,
    )
    run = TrajectoryPayload(samples=[inline], reward=1.0, trace_id=c1)
    await client.step([run, c2], learning_rate=1e-3)
    yield "rewards", [[c.id, c.mean_reward] for c in await client.checkpoints()]
    for name, inputs in (
        ("interleaved", [a1, b1, a2, b2]),
        ("timed out", [late, a1]),
        ("unknown", [uuid.uuid4().hex, a1]),
    ):
        try:
            await client.forward_backward(inputs, group_size=2)
        except HudRequestError as error:
            yield name, [error.status_code, error.message]


def reward_of(letter):
    """Of what the played sampler writes: the tests' own clients give the same."""
    return (ord(letter) - 97) / 25


async def played(agent, job, model):
    """One rollout of one turn, as the client's own runner records it."""
    trace = uuid.uuid4().hex
    await trace_enter(trace, job_id=job.id, group_id="a", task_slug="task-a", model=model)
    run = Run(None, "task", {})
    run.trace.trace_id, run.trace.status, run.trace.stop_reason = trace, "completed", "done"
    with set_trace_context(trace):
        text = mcp_types.TextContent(type="text", text="1+1?")
        prompt = mcp_types.PromptMessage(role="user", content=text)
        run.record(await agent.get_response(await agent._initialize_state(prompt=[prompt])))
    run.grade = Grade(reward=reward_of(run.trace.steps[-1].content[0]))
    run.group_id = "a"
    await trace_exit(run)
    return run


def bare(run):
    """A payload by hand, of tokens and log-probs alone."""
    sample = run.trace.steps[-1].sample
    turn = TrajectorySample(
        prompt_token_ids=sample.prompt_token_ids,
        output_token_ids=sample.output_token_ids,
        output_logprobs=sample.output_logprobs,
    )
    return TrajectoryPayload(samples=[turn], reward=run.reward)


async def tempered(model, sampling, rate):
    """A group sampled at a temperature, and each way to train on it: a step for each."""
    client = TrainingClient(model)
    kwargs = {"max_tokens": 8, "extra_body": {"return_token_ids": True}, **sampling}
    agent = create_agent(model, completion_kwargs=kwargs)
    job = await Job.start("tempered", group=4)
    for name in ("runs", "ids", "bare", "custom"):
        runs = [await played(agent, job, model) for _ in range(4)]
        ways = {"ids": [run.trace.trace_id for run in runs], "bare": [bare(run) for run in runs]}
        try:
            if name == "custom":
                await client.forward_backward_custom(runs, importance, group_size=4)
            else:
                await client.forward_backward(ways.get(name, runs), group_size=4)
            step = await client.optim_step(learning_rate=rate)
            yield name, step.step
        except HudRequestError as error:
            yield name, [error.status_code, error.message]


async def hung(model):
    """A group of two in an environment that hangs while it grades one of them."""
    env, started = Environment("slow"), []
    loop = asyncio.get_running_loop()
    real, passed = loop.time, []
    loop.time = lambda: real() + sum(passed)

    @env.template()
    async def slow():
        started.append(True)
        yield "1+1?"
        if len(started) == 2:
            # At once: the first one may need long on a busy machine.
            passed.append(600.0)
            await asyncio.Event().wait()
        yield 1.0

    agent = create_agent(model, completion_kwargs={"extra_body": {"return_token_ids": True}})
    job = await slow().run(agent, group=2, max_concurrent=1, rollout_timeout=300.0)
    for run in job.runs:
        yield run.trace.trace_id, [run.trace.status, run.trace.stop_reason, run.reward]
    client = TrainingClient(model)
    for name, inputs in (
        ("by run", job.runs),
        ("by id", [run.trace.trace_id for run in job.runs]),
    ):
        try:
            await client.forward_backward(inputs, group_size=2)
        except (HudRequestError, ValueError) as error:
            yield name, str(error)


def broken(reward=1.0, **changes):
    fields = {"prompt_token_ids": [1], "output_token_ids": [2], "output_logprobs": [-1.0]}
    sample = TrajectorySample(**{**fields, **changes})
    return TrajectoryPayload(samples=[sample], reward=reward)


async def mistakes(model, foreign, revoked):
    """What a wrong client sees: the class of the error, its status, and its sentence."""
    client = TrainingClient(model)
    late = Run(None, "task", {})
    late.trace.stop_reason = "timeout"
    fb = client.forward_backward
    tried = {
        "unknown model": lambda: TrainingClient("arth").available_losses(),
        "another namespace's model": lambda: TrainingClient(foreign).forward_backward([broken()]),
        "a revoked token": lambda: TrainingClient(model, api_key=revoked).optim_step(
            learning_rate=1.0
        ),
        "wrong lengths": lambda: fb([broken(output_logprobs=[-1.0, -2.0])]),
        "NaN reward": lambda: fb([broken(reward=float("nan"))]),
        "no output tokens": lambda: fb([broken(output_token_ids=[], output_logprobs=[])]),
        "token out of range": lambda: fb([broken(output_token_ids=[100000])]),
        "part of a group": lambda: fb([broken()] * 3, group_size=2),
        "an image": lambda: fb([broken(prompt_chunks=[{"type": "image", "data": "aGk="}])]),
        "a timed-out run": lambda: fb([late]),
        "an unknown trace": lambda: fb(["0" * 32]),
        "unknown loss": lambda: fb([broken()], loss_fn="reinforce"),
        "unknown loss parameter": lambda: fb(
            [broken()], loss_fn="ppo", loss_fn_config={"epsilom": 0.2}
        ),
        "huge body": lambda: fb([broken(prompt_token_ids=[1] * 200_000)]),
        "unknown forward": lambda: client.backward("forward-99", [[1.0]]),
        "step without gradients": lambda: client.optim_step(learning_rate=1.0),
        "a step on equal rewards alone": lambda: client.step(
            [broken(), broken()], group_size=2, learning_rate=1.0
        ),
        "head at an unknown checkpoint": lambda: client.set_head("arith-000009"),
    }
    for name, call in tried.items():
        try:
            await call()
            yield name, ["no error", None, ""]
        except Exception as error:
            status = getattr(error, "status_code", None)
            yield name, [type(error).__name__, status, getattr(error, "message", str(error))]


async def bound(model):
    """A script that says otherwise than its run in Git, and then the same."""
    client = TrainingClient(model)
    batch = [payload(1.0), payload(0.0, output=(7,))]
    try:
        await client.forward_backward(batch, group_size=2)
    except HudRequestError as error:
        yield "loss", [error.status_code, error.message]
    await client.forward_backward(batch, group_size=2, loss_fn="ppo")
    try:
        await client.optim_step(learning_rate=1e-2)
    except HudRequestError as error:
        yield "learning rate", [error.status_code, error.message]
    step = await client.optim_step(learning_rate=1e-5)
    yield "as in Git", [step.step, step.checkpoint_id]


async def main():
    scenario = globals()[sys.argv[1]]
    async for method, result in scenario(**json.loads(sys.argv[2])):
        print(json.dumps([method, result]), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
