"""The three dashboards: fleet, model, gateway."""

from __future__ import annotations

from dev.dashboards.panels import Dashboard, Panel, Query, Row, Variable

RATE = "[$__rate_interval]"


def _rate(series: str, by: str = "") -> str:
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} (rate({series}{RATE}))"


def _quantile(share: float, series: str, by: str = "") -> str:
    of = f"{by}, le" if by else "le"
    name, _, chosen = series.partition("{")
    bucket = f"{name}_bucket" + (f"{{{chosen}" if chosen else "")
    return f"histogram_quantile({share}, sum by ({of}) (rate({bucket}{RATE})))"


def _graph(title: str, unit: str, *queries: tuple[str, str], meaning: str = "") -> Panel:
    return Panel(title, unit, tuple(Query(*query) for query in queries), meaning)


def _stack(title: str, unit: str, expression: str, legend: str, meaning: str = "") -> Panel:
    return Panel(title, unit, (Query(expression, legend),), meaning, stacked=True)


FLEET = Dashboard(
    "fleet",
    "Espalier / Fleet",
    "Every model of the installation, and the operator itself.",
    (),
    (
        Row(
            "Objects",
            (
                _stack(
                    "Models and heads by state",
                    "none",
                    "sum by (kind, state) "
                    '(espalier_objects{kind=~"TrainableModel|CheckpointHead"})',
                    "{{kind}} {{state}}",
                ),
                _stack(
                    "Runs by state",
                    "none",
                    'sum by (state) (espalier_objects{kind="TrainingRun"})',
                    "{{state}}",
                ),
                _stack(
                    "Checkpoints by namespace",
                    "none",
                    'sum by (object_namespace) (espalier_objects{kind="Checkpoint"})',
                    "{{object_namespace}}",
                ),
            ),
        ),
        Row(
            "Work",
            (
                _stack(
                    "Tokens trained a second",
                    "none",
                    _rate("espalier_trainer_tokens_total", "namespace, model"),
                    "{{namespace}}/{{model}}",
                ),
                _stack(
                    "Tokens sampled a second",
                    "none",
                    _rate("vllm:generation_tokens_total", "namespace, model"),
                    "{{namespace}}/{{model}}",
                ),
                _graph(
                    "Processes that are scraped",
                    "none",
                    ('sum by (job) (up{job=~"espalier-.*"})', "{{job}}"),
                    meaning="Trainers and runners come and go with their runs.",
                ),
                _graph(
                    "Memory by process",
                    "bytes",
                    (
                        'sum by (job) (process_resident_memory_bytes{job=~"espalier-.*"})',
                        "{{job}}",
                    ),
                ),
            ),
        ),
        Row(
            "Operator",
            (
                _graph(
                    "Reconciliations a second",
                    "ops",
                    (_rate("espalier_reconcile_total", "kind, result"), "{{kind}} {{result}}"),
                ),
                _graph(
                    "Waiting objects",
                    "none",
                    ("max(espalier_workqueue_depth)", "waiting"),
                    ("max(espalier_workqueue_oldest_seconds)", "the oldest, in seconds"),
                ),
                _graph(
                    "Time of a reconciliation",
                    "s",
                    (_quantile(0.5, "espalier_reconcile_duration_seconds"), "half"),
                    (_quantile(0.99, "espalier_reconcile_duration_seconds"), "99 of 100"),
                ),
                _graph(
                    "Calls of the API server a second",
                    "ops",
                    (_rate("espalier_apiserver_requests_total", "job, code"), "{{job}} {{code}}"),
                ),
            ),
        ),
        Row(
            "Heads",
            (
                _graph(
                    "Moves",
                    "none",
                    ("sum by (reason) (espalier_head_moves_total)", "{{reason}}"),
                    meaning="Since the operator that leads was started.",
                ),
                _graph(
                    "Event of an edit until it is taken in",
                    "s",
                    (_quantile(0.99, "espalier_watch_event_age_seconds"), "99 of 100"),
                ),
                _graph(
                    "Leaders and the delay of their loop",
                    "none",
                    ("sum(espalier_leader)", "leaders"),
                    ("max(espalier_event_loop_lag_seconds)", "delay, in seconds"),
                ),
            ),
        ),
    ),
)

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
                _graph(
                    "Reward of the latest step",
                    "none",
                    (f"espalier_trainer_reward_mean{{{_MODEL}}}", "mean"),
                ),
                _graph(
                    "KL of sampler and trainer",
                    "none",
                    (f"espalier_trainer_mismatch_kl{{{_MODEL}}}", "nats a token"),
                    meaning="policy/mismatch_kl. Above 0.01 both no longer mean the same policy.",
                ),
                _graph(
                    "Gradient norm",
                    "none",
                    (f"espalier_trainer_gradient_norm{{{_MODEL}}}", "before clipping"),
                ),
                _graph(
                    "Steps",
                    "none",
                    (f"espalier_trainer_steps_total{{{_MODEL}}}", "since the trainer's start"),
                ),
            ),
        ),
        Row(
            "Where the time goes",
            (
                _stack(
                    "A run's time by phase",
                    "percentunit",
                    _rate(f"espalier_runner_phase_seconds_total{{{_MODEL}}}", "run, phase")
                    + " / on (run) group_left "
                    + _rate(f"espalier_runner_phase_seconds_total{{{_MODEL}}}", "run"),
                    "{{run}} {{phase}}",
                    meaning="Shares of the steps that were taken. See time/... of metrics.",
                ),
                _stack(
                    "The trainer's time by phase",
                    "percentunit",
                    _rate(f"espalier_trainer_phase_duration_seconds_sum{{{_MODEL}}}", "phase"),
                    "{{phase}}",
                ),
                _graph(
                    "Time to store a checkpoint",
                    "s",
                    (
                        _quantile(
                            0.9,
                            f'espalier_trainer_phase_duration_seconds{{{_MODEL}, phase="commit"}}',
                        ),
                        "9 of 10",
                    ),
                ),
                _graph(
                    "Commands at the trainer",
                    "none",
                    (f"espalier_trainer_queue_length{{{_MODEL}}}", "waiting or running"),
                    (
                        _rate(f"espalier_trainer_refusals_total{{{_MODEL}}}", "reason"),
                        "refused a second: {{reason}}",
                    ),
                ),
            ),
        ),
        Row(
            "Throughput and memory",
            (
                _graph(
                    "Tokens a second",
                    "none",
                    (_rate(f"espalier_trainer_tokens_total{{{_MODEL}}}"), "trained"),
                    (_rate(f"vllm:generation_tokens_total{{{_MODEL}}}"), "sampled"),
                    (_rate(f"vllm:prompt_tokens_total{{{_MODEL}}}"), "prompts"),
                ),
                _graph(
                    "Requests at each sampler",
                    "none",
                    (f"vllm:num_requests_running{{{_MODEL}}}", "{{pod}} running"),
                    (f"vllm:num_requests_waiting{{{_MODEL}}}", "{{pod}} waiting"),
                ),
                _graph(
                    "Time of a request at the samplers",
                    "s",
                    (
                        _quantile(0.5, f"vllm:e2e_request_latency_seconds{{{_MODEL}}}"),
                        "whole, half of them",
                    ),
                    (
                        _quantile(0.99, f"vllm:e2e_request_latency_seconds{{{_MODEL}}}"),
                        "whole, 99 of 100",
                    ),
                    (
                        _quantile(0.99, f"vllm:time_to_first_token_seconds{{{_MODEL}}}"),
                        "first token, 99 of 100",
                    ),
                ),
                _graph(
                    "KV cache and prefix cache",
                    "percentunit",
                    (f"vllm:kv_cache_usage_perc{{{_MODEL}}}", "{{pod}} in use"),
                    (
                        f"{_rate(f'vllm:prefix_cache_hits_total{{{_MODEL}}}')}"
                        f" / {_rate(f'vllm:prefix_cache_queries_total{{{_MODEL}}}')}",
                        "prefixes found",
                    ),
                ),
                _graph(
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
                _graph(
                    "Rollouts in flight",
                    "none",
                    (f"espalier_runner_rollouts_in_flight{{{_MODEL}}}", "{{run}}"),
                ),
                _graph(
                    "Time to score a task's rollouts",
                    "s",
                    (
                        _quantile(
                            0.99, f"espalier_runner_reward_duration_seconds{{{_MODEL}}}", "run"
                        ),
                        "{{run}}, 99 of 100",
                    ),
                ),
                _graph(
                    "Groups",
                    "none",
                    (
                        f"sum by (run, outcome) (espalier_runner_groups_total{{{_MODEL}}})",
                        "{{run}} {{outcome}}",
                    ),
                ),
                _graph(
                    "What failed",
                    "ops",
                    (
                        _rate(f"espalier_runner_reward_errors_total{{{_MODEL}}}", "run, cause"),
                        "rewards: {{run}} {{cause}}",
                    ),
                    (
                        _rate(f"espalier_runner_rollout_retries_total{{{_MODEL}}}", "run"),
                        "tried again: {{run}}",
                    ),
                    (
                        _rate(f"espalier_runner_waits_total{{{_MODEL}}}", "run, reason"),
                        "waits: {{run}} {{reason}}",
                    ),
                ),
            ),
        ),
    ),
)

GATEWAY = Dashboard(
    "gateway",
    "Espalier / Gateway",
    "Requests of all clients: how many, how long, and what is refused.",
    (),
    (
        Row(
            "Requests",
            (
                _stack(
                    "Requests a second by route",
                    "reqps",
                    _rate("espalier_gateway_requests_total", "route"),
                    "{{route}}",
                ),
                _stack(
                    "Requests a second by status",
                    "reqps",
                    _rate("espalier_gateway_requests_total", "status"),
                    "{{status}}",
                ),
                _graph(
                    "Share of faults",
                    "percentunit",
                    (
                        "("
                        + _rate('espalier_gateway_requests_total{status=~"5.."}')
                        + " or vector(0)) / "
                        + _rate("espalier_gateway_requests_total"),
                        "5xx",
                    ),
                ),
            ),
        ),
        Row(
            "Time",
            (
                _graph(
                    "Half of the answers by route",
                    "s",
                    (
                        _quantile(0.5, "espalier_gateway_request_duration_seconds", "route"),
                        "{{route}}",
                    ),
                ),
                _graph(
                    "99 of 100 answers by route",
                    "s",
                    (
                        _quantile(0.99, "espalier_gateway_request_duration_seconds", "route"),
                        "{{route}}",
                    ),
                ),
                _graph(
                    "What the gateway adds to trainer or sampler",
                    "s",
                    (
                        "("
                        + _rate("espalier_gateway_request_duration_seconds_sum", "route")
                        + " - "
                        + _rate("espalier_gateway_upstream_duration_seconds_sum", "route")
                        + ") / "
                        + _rate("espalier_gateway_upstream_duration_seconds_count", "route"),
                        "{{route}}",
                    ),
                    meaning="The mean. optim_step waits in the gateway until the head serves.",
                ),
            ),
        ),
        Row(
            "Refusals, and the process",
            (
                _graph(
                    "Refused requests, and faults of pods",
                    "ops",
                    (
                        _rate("espalier_gateway_refused_requests_total", "reason"),
                        "refused: {{reason}}",
                    ),
                    (_rate("espalier_gateway_pod_faults_total", "reason"), "pod: {{reason}}"),
                    (_rate("espalier_gateway_upstream_retries_total"), "sent again"),
                ),
                _graph(
                    "Cores",
                    "none",
                    (
                        'rate(process_cpu_seconds_total{job="espalier-gateway"}' + RATE + ")",
                        "{{pod}}",
                    ),
                ),
                _graph(
                    "Memory",
                    "bytes",
                    ('process_resident_memory_bytes{job="espalier-gateway"}', "{{pod}}"),
                ),
            ),
        ),
    ),
)

DASHBOARDS = (FLEET, MODEL, GATEWAY)
