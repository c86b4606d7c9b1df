"""The dashboard of a whole installation: its models, and the operator."""

from __future__ import annotations

from dev.dashboards.panels import Dashboard, Row
from dev.dashboards.queries import graph, quantile, rate, stack

FLEET = Dashboard(
    "fleet",
    "Espalier / Fleet",
    "Every model of the installation, and the operator itself.",
    (),
    (
        Row(
            "Objects",
            (
                stack(
                    "Models and heads by state",
                    "none",
                    "sum by (kind, state) "
                    '(espalier_objects{kind=~"TrainableModel|CheckpointHead"})',
                    "{{kind}} {{state}}",
                ),
                stack(
                    "Runs by state",
                    "none",
                    'sum by (state) (espalier_objects{kind="TrainingRun"})',
                    "{{state}}",
                ),
                stack(
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
                stack(
                    "Tokens trained a second",
                    "none",
                    rate("espalier_trainer_tokens_total", "namespace, model"),
                    "{{namespace}}/{{model}}",
                ),
                stack(
                    "Tokens sampled a second",
                    "none",
                    rate("vllm:generation_tokens_total", "namespace, model"),
                    "{{namespace}}/{{model}}",
                ),
                graph(
                    "Processes that are scraped",
                    "none",
                    ('sum by (job) (up{job=~"espalier-.*"})', "{{job}}"),
                    meaning="Trainers and runners come and go with their runs.",
                ),
                graph(
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
                graph(
                    "Reconciliations a second",
                    "ops",
                    (rate("espalier_reconcile_total", "kind, result"), "{{kind}} {{result}}"),
                ),
                graph(
                    "Waiting objects",
                    "none",
                    ("max(espalier_workqueue_depth)", "waiting"),
                    ("max(espalier_workqueue_oldest_seconds)", "the oldest, in seconds"),
                ),
                graph(
                    "Time of a reconciliation",
                    "s",
                    (quantile(0.5, "espalier_reconcile_duration_seconds"), "half"),
                    (quantile(0.99, "espalier_reconcile_duration_seconds"), "99 of 100"),
                ),
                graph(
                    "Calls of the API server a second",
                    "ops",
                    (rate("espalier_apiserver_requests_total", "job, code"), "{{job}} {{code}}"),
                ),
            ),
        ),
        Row(
            "Heads",
            (
                graph(
                    "Moves",
                    "none",
                    ("sum by (reason) (espalier_head_moves_total)", "{{reason}}"),
                    meaning="Since the operator that leads was started.",
                ),
                graph(
                    "Event of an edit until it is taken in",
                    "s",
                    (quantile(0.99, "espalier_watch_event_age_seconds"), "99 of 100"),
                ),
                graph(
                    "Leaders and the delay of their loop",
                    "none",
                    ("sum(espalier_leader)", "leaders"),
                    ("max(espalier_event_loop_lag_seconds)", "delay, in seconds"),
                ),
            ),
        ),
    ),
)
