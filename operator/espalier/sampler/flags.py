"""vLLM's flags and environment for our pods, each with the reason unless it is obvious."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espalier.core import names
from espalier.sampler.settings import SamplerSettings
from espalier.telemetry import settings as telemetry
from espalier.telemetry.spans import MODEL, NAMESPACE

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
MAX_SEQUENCES = 64
# Room in the CPU's KV cache, in sequences of full length. More requests than fit wait in the queue.
CPU_FULL_SEQUENCES = 16
MIN_BATCHED_TOKENS = 2048
# Blocks of the KV cache; each sequence holds whole blocks, and only whole blocks are shared. vLLM's
# default on CPU is 128, more than a short prompt: the n samples of a group then prefill n times.
CPU_BLOCK_TOKENS = 32
# Elements below which torch does not share an operation out among threads (at::GRAIN_SIZE).
TORCH_GRAIN = 32768
SHUTDOWN_SECONDS = 30
LOG_CONFIG = "logging.json"
LOOPBACK = "lo"


def kv_cache_bytes(config: Mapping[str, Any], settings: SamplerSettings, memory_bytes: int) -> int:
    """Size of the CPU's KV cache: what 16 full sequences need, at most a quarter of the memory.

    ``config`` is the base's config.json; ``memory_bytes`` what the container may use.
    """
    text = config.get("text_config", config)
    layers, heads = int(text["num_hidden_layers"]), int(text["num_attention_heads"])
    head_size = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    key_value_heads = int(text.get("num_key_value_heads") or heads)
    per_token = 2 * layers * key_value_heads * head_size * DTYPE_BYTES[settings.dtype]
    blocks = -(-settings.max_model_tokens // CPU_BLOCK_TOKENS)
    one = blocks * CPU_BLOCK_TOKENS * per_token
    # Two sequences at least: one block is lost to padding, and a single one could not be admitted.
    return max(2 * one, min(CPU_FULL_SEQUENCES * one, memory_bytes // 4))


def common_arguments(settings: SamplerSettings, seed: int) -> list[str]:
    """Flags for every device."""
    return [
        *("--host", settings.host, "--port", str(settings.port)),
        *("--model", str(settings.base_directory), "--served-model-name", names.BASE),
        *("--dtype", settings.dtype, "--max-model-len", str(settings.max_model_tokens)),
        # vLLM's default seed 0 makes every pod and every restart sample the same sequences.
        *("--seed", str(seed)),
        *_weights_arguments(settings),
        # Raw log-probs ignore the temperature: a trainer would see another policy than was sampled.
        *("--logprobs-mode", "processed_logprobs"),
        # The model's own generation_config.json would change sampling parameters left unset.
        *("--generation-config", "vllm"),
        # Callers take turns (turns.py): a request's priority is its number.
        *("--scheduling-policy", "priority"),
        # With 0, clients in flight hang until their own timeout.
        *("--shutdown-timeout", str(SHUTDOWN_SECONDS)),
        *("--middleware", "espalier.sampler.control_route.GuardedControl"),
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
    ]


def _weights_arguments(settings: SamplerSettings) -> list[str]:
    """Flags of the adapter type: adapters beside the base, or full weights in its place."""
    if settings.adapter_type == "Full":
        return ["--worker-extension-cls", "espalier.sampler.full_weights.vllm_worker.FullWeights"]
    return [
        "--enable-lora",
        # Callers share these slots (adapter_slots.py).
        *("--max-loras", str(settings.max_adapters)),
        # Room for as many again, so that going back to the previous head reads no file.
        *("--max-cpu-loras", str(2 * settings.max_adapters)),
        *("--max-lora-rank", str(settings.slot_rank)),
    ]


def cpu_arguments(settings: SamplerSettings, cache_bytes: int) -> list[str]:
    """Flags that only the CPU needs."""
    return [
        *("--distributed-executor-backend", "uni"),
        # Compiled mode needs a C++ compiler in the image.
        "--enforce-eager",
        *("--block-size", str(CPU_BLOCK_TOKENS)),
        *("--kv-cache-memory-bytes", str(cache_bytes)),
        *("--max-num-seqs", str(MAX_SEQUENCES)),
        # A seeded request with chunked prefill kills the CPU engine.
        "--no-enable-chunked-prefill",
        *("--max-num-batched-tokens", str(max(settings.max_model_tokens, MIN_BATCHED_TOKENS))),
    ]


def cpu_threads(config: Mapping[str, Any], cpus: int) -> int:
    """Compute threads for a number of cores: one if the model's matrices are tiny.

    Below torch's grain threads do nothing but wait for each other: a batch of a tiny model took
    twice the CPU time. ``config`` is the base's config.json.
    """
    hidden = int(config.get("text_config", config)["hidden_size"])
    return 1 if hidden * hidden < TORCH_GRAIN else cpus


def log_config() -> dict[str, Any]:
    """vLLM's logs, its server's included, in the form of every other process; for ``dictConfig``.

    Its processes fork and spawn, so each writes its lines itself.
    """
    to_stderr = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "espalier.process.JsonFormatter", "fields": ["process"]}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {
            "vllm": to_stderr,
            # The throughput of every ten seconds, which Prometheus has.
            "vllm.v1.metrics.loggers": {"level": "WARNING"},
            "uvicorn": to_stderr,
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    }


def environment(scratch: Path, threads: int | None) -> dict[str, str]:
    """Variables to set before vLLM is imported; all that it writes goes below ``scratch``.

    ``threads``: to compute with, or None where a GPU does.
    """
    common = {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        "VLLM_CONFIG_ROOT": str(scratch / "vllm"),
        # Only our resolver: vLLM's filesystem resolver follows names out of its directory.
        "VLLM_PLUGINS": "espalier",
        "VLLM_LOGGING_CONFIG_PATH": str(scratch / LOG_CONFIG),
        # On-demand loading depends on it; auth.py leaves the routes that it opens closed.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # What vLLM's processes listen on asks for no token. gloo and NCCL would take the address of
        # the hostname, which in a pod is the pod's; all ranks of a sampler are in one pod.
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOOPBACK_IP": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if threads is None:
        return common
    return common | {
        # With uni: one process less, and no pod pins itself to the node's first core.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCHDYNAMO_DISABLE": "1",
        # Without it vLLM keeps a core free for the server, which is half of a pod with two.
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin long at barriers while another process has their core are four times
        # slower; threads that sleep at once cost a third on idle cores. About 0.1 ms is between.
        "GOMP_SPINCOUNT": "20000",
    }


def spans_environment(settings: SamplerSettings, given: Mapping[str, str]) -> dict[str, str]:
    """Variables by which vLLM records spans as our other processes do; raises SettingsError.

    Args:
        settings: of this sampler.
        given: the variables that there are.
    """
    endpoint = telemetry.spans_endpoint(given)
    if not endpoint:
        # vLLM's workers record spans wherever this is set.
        return {telemetry.TRACES_ENDPOINT: ""} if telemetry.TRACES_ENDPOINT in given else {}
    about = {NAMESPACE: settings.namespace, MODEL: settings.model}
    said = telemetry.resource(given, "espalier-sampler", about)
    listed = (f"{name}={value}" for name, value in said.items())
    return {
        telemetry.TRACES_ENDPOINT: endpoint,
        telemetry.TRACES_PROTOCOL: "http/protobuf",
        telemetry.RESOURCE_ATTRIBUTES: ",".join(
            filter(None, [given.get(telemetry.RESOURCE_ATTRIBUTES), *listed])
        ),
        # vLLM ends once its last spans are sent: with a collector that is gone that is four times
        # this, within the pod's grace period.
        telemetry.TIMEOUT: given.get(telemetry.TIMEOUT, "2"),
    }
