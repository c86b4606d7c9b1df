"""Metrics of the kube layer, named as controller-runtime names them so that dashboards fit."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("apiserver_requests", "Calls to the API server.", ["verb", "code"])

QUEUE_DEPTH = Gauge("workqueue_depth", "Keys that wait for a worker.")
QUEUE_AGE = Gauge("workqueue_oldest_seconds", "How long the longest waiting key has waited.")
WORKER_AGE = Gauge(
    "workqueue_longest_running_processor_seconds", "How long the longest reconciliation runs."
)
QUEUE_ADDS = Counter("workqueue_adds", "Keys added to the queue.", ["kind"])
QUEUE_RETRIES = Counter("workqueue_retries", "Keys added again after a failure.", ["kind"])
QUEUE_WAIT = Histogram("workqueue_queue_duration_seconds", "Time that a key waits for a worker.")

RECONCILES = Counter("reconcile", "Reconciliations.", ["kind", "result"])
RECONCILE_DURATION = Histogram(
    "reconcile_duration_seconds", "Time of a reconciliation.", ["kind", "result"]
)

WATCH_EVENTS = Counter("watch_events", "Events of the watches.", ["kind", "type"])
EVENT_AGE = Histogram(
    "watch_event_age_seconds",
    "Time from the last write of an object (managedFields) until its event was taken in.",
    ["kind"],
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
WATCH_LISTS = Counter("watch_lists", "Lists before a watch; more than one is a re-list.", ["kind"])
MISSED_DELETES = Counter("watch_missed_deletes", "Deletes found by comparison only.", ["kind"])

PODS_IGNORED = Counter(
    "pods_ignored", "Pods with Espalier's labels that are not its own.", ["role", "reason"]
)

LEADER = Gauge("leader", "1 while this replica holds the lease.")
LOOP_LAG = Gauge("event_loop_lag_seconds", "By how much the loop was late at its last heartbeat.")

ROTTEN = Gauge(
    "rotten_checkpoints",
    "Checkpoints, and the base, whose bytes the last scrub found altered or gone.",
    ["namespace", "model"],
)
SCRUBBED_BYTES = Counter(
    "scrubbed_bytes", "Bytes that scrubs have read and compared with their digests."
)

HEAD_MOVES = Counter("head_moves", "Moves of heads, by what caused them.", ["reason"])
SWAP_LATENCY = Histogram(
    "head_swap_seconds",
    "Time from the edit of a head's spec until all rollouts serve what it asks for.",
    buckets=(0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
