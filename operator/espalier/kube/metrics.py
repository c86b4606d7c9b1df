"""Metrics of the kube layer, named as controller-runtime names them so that dashboards fit."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("apiserver_requests", "Calls to the API server.", ["verb", "code"])

QUEUE_DEPTH = Gauge("workqueue_depth", "Keys that wait for a worker.")
QUEUE_ADDS = Counter("workqueue_adds", "Keys added to the queue.", ["kind"])
QUEUE_RETRIES = Counter("workqueue_retries", "Keys added again after a failure.", ["kind"])
QUEUE_WAIT = Histogram("workqueue_queue_duration_seconds", "Time that a key waits for a worker.")

RECONCILES = Counter("reconcile", "Reconciliations.", ["kind", "result"])
RECONCILE_DURATION = Histogram("reconcile_duration_seconds", "Time of a reconciliation.", ["kind"])

WATCH_EVENTS = Counter("watch_events", "Events of the watches.", ["kind", "type"])
WATCH_LISTS = Counter("watch_lists", "Lists before a watch; more than one is a re-list.", ["kind"])
MISSED_DELETES = Counter("watch_missed_deletes", "Deletes found by comparison only.", ["kind"])

LEADER = Gauge("leader", "1 while this replica holds the lease.")
