"""Metrics of the operator, named as controller-runtime names its own, after our prefix."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("espalier_apiserver_requests", "Calls to the API server.", ["verb", "code"])

QUEUE_DEPTH = Gauge("espalier_workqueue_depth", "Keys that wait for a worker.")
QUEUE_AGE = Gauge(
    "espalier_workqueue_oldest_seconds", "How long the longest waiting key has waited."
)
WORKER_AGE = Gauge(
    "espalier_workqueue_longest_running_processor_seconds",
    "How long the longest reconciliation runs.",
)
QUEUE_ADDS = Counter("espalier_workqueue_adds", "Keys added to the queue.", ["kind"])
QUEUE_RETRIES = Counter("espalier_workqueue_retries", "Keys added again after a failure.", ["kind"])
QUEUE_WAIT = Histogram(
    "espalier_workqueue_queue_duration_seconds", "Time that a key waits for a worker."
)

RECONCILES = Counter("espalier_reconcile", "Reconciliations.", ["kind", "result"])
RECONCILE_DURATION = Histogram(
    "espalier_reconcile_duration_seconds", "Time of a reconciliation.", ["kind", "result"]
)

WATCH_EVENTS = Counter("espalier_watch_events", "Events of the watches.", ["kind", "type"])
EVENT_AGE = Histogram(
    "espalier_watch_event_age_seconds",
    "Time from the last write of an object (managedFields) until its event was taken in; of "
    "additions and changes.",
    ["kind"],
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
WATCH_LISTS = Counter(
    "espalier_watch_lists", "Lists before a watch; more than one is a re-list.", ["kind"]
)
MISSED_DELETES = Counter(
    "espalier_watch_missed_deletes", "Deletes found by comparison only.", ["kind"]
)

PODS_IGNORED = Counter(
    "espalier_pods_ignored", "Pods with Espalier's labels that are not its own.", ["role", "reason"]
)

LEADER = Gauge("espalier_leader", "1 while this replica holds the lease.")
LOOP_LAG = Gauge(
    "espalier_event_loop_lag_seconds", "By how much the loop was late at its last heartbeat."
)

OBJECTS = Gauge(
    "espalier_objects",
    "Espalier's objects, by namespace and state: Succeeded, Suspended, Stalled or Ready, whichever "
    "of these conditions is the first that is True, else Pending.",
    ["kind", "object_namespace", "state"],
)
ROTTEN = Gauge(
    "espalier_rotten_checkpoints",
    "Checkpoints and bases whose bytes the last scrub found altered or gone.",
    ["object_namespace"],
)
SCRUBBED_BYTES = Counter(
    "espalier_scrubbed_bytes", "Bytes that scrubs have read and compared with their digests."
)

HEAD_MOVES = Counter("espalier_head_moves", "Moves of heads, by what caused them.", ["reason"])
SWAP_LATENCY = Histogram(
    "espalier_head_swap_seconds",
    "Time from the edit of a head's spec until all rollouts serve what it asks for.",
    buckets=(0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
