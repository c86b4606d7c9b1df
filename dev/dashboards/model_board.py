"""The dashboard of one model: its trainer, samplers and runners."""

from __future__ import annotations

from dev.dashboards.panels import Dashboard, Row, Variable
from dev.dashboards.queries import graph, quantile, rate, stack

_MODEL = 'namespace="$namespace", model="$model"'
MODEL = Dashboard(
    "model",
    "Espalier / Model",
    "One model: what its trainer, samplers and runners do.",
    (
        Variable("namespace", "namespace", 'up{job=~"espalier-(trainer|rollout)"}'),
        Variable("model", "model", 'up{job=~"espalier-(trainer|rollout)", namespace="$namespace"}'),
    ),
    (
        Row(
            "Training",
            (
                graph(
                    "Reward of the latest step",
                    "none",
                    (f"espalier_trainer_reward_mean{{{_MODEL}}}", "mean"),
                ),
                graph(
                    "KL of sampler and trainer",
                    "none",
                    (f"espalier_trainer_mismatch_kl{{{_MODEL}}}", "nats a token"),
                    meaning="policy/mismatch_kl. Above 0.01 both no longer mean the same policy.",
                ),
                graph(
                    "Gradient norm",
                    "none",
                    (f"espalier_trainer_gradient_norm{{{_MODEL}}}", "before clipping"),
                ),
                graph(
                    "Steps",
                    "none",
                    (f"espalier_trainer_steps_total{{{_MODEL}}}", "since the trainer's start"),
                ),
            ),
        ),
        Row(
            "Where the time goes",
            (
                stack(
                    "A run's time by phase",
                    "percentunit",
                    rate(f"espalier_runner_phase_seconds_total{{{_MODEL}}}", "run, phase")
                    + " / on (run) group_left "
                    + rate(f"espalier_runner_phase_seconds_total{{{_MODEL}}}", "run"),
                    "{{run}} {{phase}}",
                    meaning="Shares of the steps that were taken. See time/... of metrics.",
                ),
                stack(
                    "The trainer's time by phase",
                    "percentunit",
                    rate(f"espalier_trainer_phase_duration_seconds_sum{{{_MODEL}}}", "phase"),
                    "{{phase}}",
                ),
                graph(
                    "Time to store a checkpoint",
                    "s",
                    (
                        quantile(
                            0.9,
                            f'espalier_trainer_phase_duration_seconds{{{_MODEL}, phase="commit"}}',
                        ),
                        "9 of 10",
                    ),
                ),
                graph(
                    "Commands at the trainer",
                    "none",
                    (f"espalier_trainer_queue_length{{{_MODEL}}}", "waiting or running"),
                    (
                        rate(f"espalier_trainer_refusals_total{{{_MODEL}}}", "reason"),
                        "refused a second: {{reason}}",
                    ),
                ),
            ),
        ),
        Row(
            "Throughput and memory",
            (
                graph(
                    "Tokens a second",
                    "none",
                    (rate(f"espalier_trainer_tokens_total{{{_MODEL}}}"), "trained"),
                    (rate(f"vllm:generation_tokens_total{{{_MODEL}}}"), "sampled"),
                    (rate(f"vllm:prompt_tokens_total{{{_MODEL}}}"), "prompts"),
                ),
                graph(
                    "Requests at each sampler",
                    "none",
                    (f"vllm:num_requests_running{{{_MODEL}}}", "{{pod}} running"),
                    (f"vllm:num_requests_waiting{{{_MODEL}}}", "{{pod}} waiting"),
                ),
                graph(
                    "Time of a request at the samplers",
                    "s",
                    (
                        quantile(0.5, f"vllm:e2e_request_latency_seconds{{{_MODEL}}}"),
                        "whole, half of them",
                    ),
                    (
                        quantile(0.99, f"vllm:e2e_request_latency_seconds{{{_MODEL}}}"),
                        "whole, 99 of 100",
                    ),
                    (
                        quantile(0.99, f"vllm:time_to_first_token_seconds{{{_MODEL}}}"),
                        "first token, 99 of 100",
                    ),
                ),
                graph(
                    "KV cache and prefix cache",
                    "percentunit",
                    (f"vllm:kv_cache_usage_perc{{{_MODEL}}}", "{{pod}} in use"),
                    (
                        f"{rate(f'vllm:prefix_cache_hits_total{{{_MODEL}}}')}"
                        f" / {rate(f'vllm:prefix_cache_queries_total{{{_MODEL}}}')}",
                        "prefixes found",
                    ),
                ),
                graph(
                    "Memory",
                    "bytes",
                    (f"process_resident_memory_bytes{{{_MODEL}}}", "{{pod}}"),
                    (f"espalier_trainer_gpu_memory_bytes{{{_MODEL}}}", "GPU {{kind}}"),
                ),
            ),
        ),
        Row(
            "Rollouts",
            (
                graph(
                    "Rollouts in flight",
                    "none",
                    (f"espalier_runner_rollouts_in_flight{{{_MODEL}}}", "{{run}}"),
                ),
                graph(
                    "Time to score a task's rollouts",
                    "s",
                    (
                        quantile(
                            0.99, f"espalier_runner_reward_duration_seconds{{{_MODEL}}}", "run"
                        ),
                        "{{run}}, 99 of 100",
                    ),
                ),
                graph(
                    "Groups",
                    "none",
                    (
                        f"sum by (run, outcome) (espalier_runner_groups_total{{{_MODEL}}})",
                        "{{run}} {{outcome}}",
                    ),
                ),
                graph(
                    "What failed",
                    "ops",
                    (
                        rate(f"espalier_runner_reward_errors_total{{{_MODEL}}}", "run, cause"),
                        "rewards: {{run}} {{cause}}",
                    ),
                    (
                        rate(f"espalier_runner_rollout_retries_total{{{_MODEL}}}", "run"),
                        "tried again: {{run}}",
                    ),
                    (
                        rate(f"espalier_runner_waits_total{{{_MODEL}}}", "run, reason"),
                        "waits: {{run}} {{reason}}",
                    ),
                ),
            ),
        ),
    ),
)
