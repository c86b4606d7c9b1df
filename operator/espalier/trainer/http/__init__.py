"""The trainer's HTTP service: routes, requests, and what other threads may read."""
