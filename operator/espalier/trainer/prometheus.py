"""Metrics of the trainer. Its pod says of which model they are, so no label does."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

# Where the time of a step goes. ``reference``: log-probs of the reference policy; ``gradients``:
# the passes forward and backward; ``forward``: log-probs for a client; ``optimizer``: the new
# weights; ``commit``: their checkpoint made durable; ``install``: the new weights put in force.
Phase = Literal["reference", "gradients", "forward", "optimizer", "commit", "install"]
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

COMMANDS = Histogram(
    "espalier_trainer_command_duration_seconds",
    "Time of a command on the engine's thread. batch, assign and tinker are what they are in the "
    "trainer's routes.",
    ["command"],
    buckets=_BUCKETS,
)
QUEUE = Gauge(
    "espalier_trainer_queue_length", "Commands that wait for the engine, with the one that runs."
)
PHASES = Histogram(
    "espalier_trainer_phase_duration_seconds",
    "Time of one part of a command: reference, gradients, forward, optimizer, commit or install. "
    "What a restart repeats from the log counts.",
    ["phase"],
    buckets=_BUCKETS,
)
TOKENS = Counter(
    "espalier_trainer_tokens", "Output tokens whose gradients were accumulated; rate: tokens/s."
)
UNIQUE_TOKENS = Counter(
    "espalier_trainer_unique_tokens",
    "Tokens that went through the model for these gradients: a shared prompt counts once per row.",
)
STEPS = Counter("espalier_trainer_steps", "Optimizer steps that were committed.")
REFUSALS = Counter(
    "espalier_trainer_refusals",
    "Commands and requests that were refused, by the reason of the answer (see errors), and those "
    "that are no HTTP (HttpMalformed).",
    ["reason"],
)
MISMATCH = Gauge(
    "espalier_trainer_mismatch_kl",
    "KL(sampler || trainer) of the latest step, in nats a token: policy/mismatch_kl.",
)
REWARD = Gauge(
    "espalier_trainer_reward_mean",
    "Mean reward of the samples of the latest step: rollout/reward/mean.",
)
GRADIENT_NORM = Gauge(
    "espalier_trainer_gradient_norm",
    "Global L2 norm of the latest step's gradient before clipping: optimizer/gradient_norm.",
)
GPU_MEMORY = Gauge(
    "espalier_trainer_gpu_memory_bytes",
    "Memory of rank 0's GPU: allocated and reserved by torch, peak (the most allocated so far) and "
    "total. No series without a GPU; process_resident_memory_bytes is the host's.",
    ["kind"],
)
