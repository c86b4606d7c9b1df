"""The page of the metrics: Prometheus' series, and the figures of a step or a checkpoint."""

from __future__ import annotations

from types import ModuleType

from dev.docs.markdown import code, page, table
from prometheus_client import Counter, Gauge, Histogram

from espalier.api.metric_names import MEASURED, STEP_REWARD
from espalier.gateway import prometheus as gateway
from espalier.kube import queue_metrics
from espalier.runner import prometheus as runner
from espalier.sampler import prometheus as sampler
from espalier.trainer import prometheus as trainer_series
from espalier.trainer.batch.step_metrics import GRADIENT_NORM, LEARNING_RATE, METRICS

Series = Counter | Gauge | Histogram
TYPES = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
REGISTRIES = (queue_metrics, gateway, trainer_series, sampler, runner)
# What the runner and the Python client add to a step. tests/docs finds every name in their code.
OF_SAMPLES = {
    "rollout/reward/mean": "Mean reward of the samples that the step was taken with.",
    "rollout/reward/std": "Population standard deviation of these rewards.",
    "rollout/reward/min": "The lowest of these rewards.",
    "rollout/reward/max": "The highest of these rewards.",
    "group/zero_variance_fraction": "Share of groups in which all rewards are equal.",
    "async/staleness_steps/mean": "Steps by which groups were older than the weights that learnt "
    "from them; schedule Asynchronous alone.",
    "async/staleness_steps/max": "The oldest of these groups.",
    "batch/minibatch": "Which of the batch's minibatches the step was taken with, from 1. Where a "
    "batch has several steps; the figures of its samples are then repeated.",
    "batch/epoch": "Which epoch over the batch, from 1.",
    "batch/steps_before": "Steps that were taken with the batch before: how far the policy is from "
    "where it was sampled.",
    "group/all_pass_fraction": "Share of the graded groups whose rewards are all 1 or more.",
    "group/all_fail_fraction": "Share of the graded groups whose rewards are all 0 or less.",
    "group/dropped": "Groups that were not trained on, because their rewards are equal, or one of "
    "their answers could not be scored or was cut and the run drops such groups.",
    "group/excluded": "Groups left out whole because a rollout failed or timed out. Client.",
    "group/prompt_too_long": "Tasks whose prompt did not fit the context of the model, or "
    "`limits`. Runner, where it happened.",
    "rollout/response_tokens/mean": "Mean number of sampled tokens of a rollout, all turns "
    "together.",
    "rollout/response_tokens/max": "The largest of these numbers.",
    "completion/no_answer_fraction": "Share of completions in which `taskset.answerExtraction` "
    "finds nothing. Runner.",
    "completion/unscored_fraction": "Share of completions without a reward. Runner.",
    "completion/tokens_mean": "Mean number of tokens of a completion.",
    "completion/tokens_total": "Tokens of all completions that were sampled for the step: what "
    "`status.usage.sampledTokens` of the run counts.",
    "completion/truncated_fraction": "Share of completions that were cut at the token limit.",
    "rollout/retries": "Tries of rollouts after their first, where there were any. Runner.",
    "rollout/scorer_errors": "Answers that could not be scored. Runner.",
    "rollout/scorer_errors_<cause>": "The same by cause, where it occurred: `raised`, `timeout`, "
    "`memory`, `died`, `not_finite`, `out_of_range`, `malformed`, `unreachable`. Runner.",
    "rollout/reward/<name>/mean": "Mean of one of the run's `rewards`, before its weight. "
    "`overlong` and `length` are what `overlong` and `lengthPenalty` add. Runner.",
    "rollout/reward/<name>/std": "Population standard deviation of it.",
    "rollout/reward/<name>/errors": "Answers for which it could not be had, where that occurred.",
    "loss/custom": "What the function of `loss.customRef` gave. Runner.",
    "loss/<name>": "A metric that it gave. `policy/reference_kl` is told of it too, where the run "
    "has `kl.reference`.",
    "rollout/failed": "Rollouts that did not complete. Client.",
    "rollout/timed_out": "Rollouts that ran out of time. Client.",
    "time/step_seconds": "Wall-clock time from the command of the step before to that of this one; "
    "the other six add up to it. Of the first step since its process started, from its start.",
    "time/sampling_seconds": "Waiting for completions.",
    "time/reward_seconds": "Waiting for rewards, and for what environments do between turns, while "
    "no completion is sampled.",
    "time/training_seconds": "Waiting for gradients; of Asynchronous, sampling goes on meanwhile.",
    "time/commit_seconds": "The optimizer step before this one, and its checkpoint made durable.",
    "time/swap_seconds": "From then until the head served that checkpoint, or was known not to.",
    "time/idle_seconds": "None of these: a run that is held, the loop's own work, and in a "
    "`Fit` its validation.",
    "tracking/failed": "Calls of trackers that failed so far, where any did.",
    "tracking/dropped": "Steps that a tracker was not told so far, because it was slow or could "
    "not be started.",
}
# Of vLLM's series those that charts/espalier/files reads; tests/monitoring holds it to this list.
OF_VLLM = {
    "vllm:num_requests_running": "Requests in the batch.",
    "vllm:num_requests_waiting": "Requests that wait for a place in it.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache in use, 0 to 1.",
    "vllm:generation_tokens_total": "Tokens sampled.",
    "vllm:prompt_tokens_total": "Tokens of prompts.",
    "vllm:prefix_cache_hits_total": "Tokens of prompts found in the prefix cache.",
    "vllm:prefix_cache_queries_total": "Tokens of prompts looked for there.",
    "vllm:time_to_first_token_seconds": "Time until the first token; a histogram.",
    "vllm:e2e_request_latency_seconds": "Time of a whole request; a histogram.",
}
OF_CHECKPOINT = {
    "reward/mean": "Mean reward of the samples that were drawn from this checkpoint.",
    "reward/std": "Population standard deviation of these rewards.",
    "reward/min": "The lowest of these rewards.",
    "reward/max": "The highest of these rewards.",
    "reward/<name>/mean": "Mean of one of the run's `rewards`, before its weight.",
    "eval/...": "What an evaluation found, such as `eval/reward/mean` of a `Fit`'s validation.",
}


def pages() -> dict[str, str]:
    """The page by file name."""
    own = " or ".join(code(f"{start}...") for start in MEASURED)
    trainer = [(code(m.checkpoint), code(m.answer), m.meaning) for m in METRICS]
    return {
        "metrics.md": page(
            "Metrics",
            "the registries in operator/espalier and dev/docs/metrics_page.py",
            "Three kinds of numbers: series for Prometheus, figures of an optimizer step, and "
            "figures of a checkpoint.",
            "No series has a label of a user's choice: of which namespace, model and run a pod is, "
            "the scrape adds from its labels ([monitoring](../operations/monitoring.md)). Every "
            "process has `process_...` and `python_...` of the Prometheus client too.",
            "## Operator: `/metrics` on port 8080",
            "Only the leader's series say something about objects. Alerts that are worth a page: "
            "[monitoring](../operations/monitoring.md).",
            _series(queue_metrics),
            "## Gateway: `/metrics` on port 8080",
            "`espalier_pods_ignored_total`, `espalier_apiserver_requests_total` and "
            "`espalier_watch_...` of the operator are here as well.",
            _series(gateway),
            "## Trainer: `/metrics` on port 8000, with a token",
            _series(trainer_series),
            "## Runner: `/metrics` on port 8080",
            _series(runner),
            "## Sampler: `/metrics` on port 8000, with a token",
            _series(sampler),
            "Beside it [vLLM's own](https://docs.vllm.ai/en/stable/usage/metrics.html), without "
            "`vllm:lora_requests_info`, which would be a series for each combination of adapters. "
            "Our dashboards and alerts read these:",
            table(("series", "meaning"), ((code(n), text) for n, text in OF_VLLM.items())),
            "## Figures of a step",
            "In `status.metrics` of the Checkpoint that the step made. They describe the samples "
            "of the step. The *parent* drew those samples, so "
            f"`{STEP_REWARD}` is the parent's reward ([why](../concepts/index.md#two-rewards)).",
            "### From the samples",
            "The runner and a `Fit` of the Python client send them with `optim_step`.",
            table(("metric", "meaning"), ((code(n), text) for n, text in OF_SAMPLES.items())),
            "### From the trainer",
            "The middle column is the name in the answer of `forward_backward`. A reward that the "
            "client itself sent takes precedence.",
            table(
                ("metric", "in the answer", "meaning"),
                [
                    *trainer,
                    *((code(name), "", text) for name, text in (GRADIENT_NORM, LEARNING_RATE)),
                ],
            ),
            "## Figures of a checkpoint",
            f"Names that begin with {own}. They come with the next step, which samples the "
            "checkpoint; so the newest checkpoint has none. Gates, `keepBest`, `promote` and the "
            "column REWARD of Checkpoints read these and no others.",
            table(("metric", "meaning"), ((code(n), text) for n, text in OF_CHECKPOINT.items())),
        )
    }


def declared(module: ModuleType) -> list[Series]:
    """The series that a registry declares, in its order."""
    return [v for v in vars(module).values() if isinstance(v, (Counter, Gauge, Histogram))]


def _series(module: ModuleType) -> str:
    return table(("series", "type", "labels", "meaning"), map(_row, declared(module)))


def _row(series: Series) -> tuple[str, str, str, str]:
    (family,) = series.describe()
    kind = TYPES[type(series)]
    name = f"{family.name}_total" if kind == "counter" else family.name
    labels = ", ".join(map(code, series._labelnames))
    return code(name), kind, labels, family.documentation
