"""Brings a base model to the volume, once: ``python -m espalier.trainer.jobs.importer``.

With an adapter it also converts a LoRA adapter from outside. It opens strangers' bytes, so it
writes to a folder of its model alone. It leaves there what it brought, and an ImportReport;
``place`` is given the same arguments and puts it in place. Where it fails it prints a Problem and
leaves it in the termination log.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from espalier import process
from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.api.model.adapter import Adapter
from espalier.core.volume import base_directory
from espalier.trainer.jobs.import_order import BASE_FIELD, CONVERTED, Order, Source
from espalier.trainer.jobs.import_progress import Progress, served
from espalier.trainer.jobs.import_report import ImportReport
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume.base_files import (
    PATTERNS,
    TEMPLATE,
    Facts,
    Wanted,
    check_space,
    model_files,
    size_of,
)
from espalier.trainer.volume.durable_files import (
    emptied,
    make_directory,
    remove,
    volume_written,
)
from espalier.untrusted import field_path


def copy_directory(
    staged: Path, source: Path, chat_template: str = "", progress: Progress | None = None
) -> None:
    """Copies the files of the model in ``source``.

    A ``chat_template``, unless empty, replaces the base's own.
    """
    files = model_files(source)
    size = sum(path.stat().st_size for path in files)
    check_space(staged, size, BASE_FIELD)
    if progress is not None:
        targets = [staged / path.relative_to(source) for path in files]
        progress.begin(size, lambda: sum(size_of(target) for target in targets))
    for path in files:
        target = staged / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _give_template(staged, chat_template)


def convert_adapter(staged: Path, source: Path, adapter: Adapter, base: Path) -> list[str]:
    """Writes the adapter in ``source`` as a checkpoint has it; returns its target modules.

    Raises:
        UserMistakeError: it is unfit for the base.
    """
    # Imported here: importing a base needs no torch.
    from espalier.trainer.engine import imported_adapter  # noqa: PLC0415
    from espalier.trainer.policy.lora import adapter_shapes  # noqa: PLC0415
    from espalier.trainer.volume import peft_adapter  # noqa: PLC0415

    if adapter.type != "LoRA":
        raise UserMistakeError(
            "AdapterMismatch",
            f"spec.adapter.type is {adapter.type}, and an adapter fits LoRA alone",
            "import it for a model of type LoRA, or merge it into its base and fork from that",
        )
    parameters = peft_adapter.read(source, adapter, adapter_shapes(base, adapter))
    return imported_adapter.write_tensors(staged, parameters)


def bring(order: Order, progress: Progress) -> None:
    """Fills the staging folder; what an earlier try left of the same order is gone on with."""
    emptied(order.staging, keep=[source.staged for source in order.sources])
    base, facts, promised = _bring_base(order, progress)
    modules = None
    if order.adapter is not None:
        source = order.adapter.directory
        if source is None:
            source, _ = _download(order, order.adapter, "ESPALIER_ADAPTER_TOKEN")
        converted = order.staging / CONVERTED
        converted.mkdir()
        modules = convert_adapter(converted, source, order.wanted, base)
    try:
        report = ImportReport.of(facts, {**promised}, modules)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UserMistakeError(
            "UnsupportedBase",
            f"{field_path(wrong['loc'])} of the source is {wrong['input']!r:.60}: {wrong['msg']}",
            "mend the files of the source, config.json above all",
        ) from error
    report.write(order.staging)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 64 for a user's mistake, 1 if a retry may succeed."""
    order = Order.read(sys.argv[1:] if arguments is None else arguments)
    try:
        with volume_written(order.staging), served(progress := Progress()):
            make_directory(order.staging)
            bring(order, progress)
    except UserMistakeError as error:
        emptied(order.staging)
        process.leave_problem(error.problem)
        return USER_MISTAKE
    except CommandError as error:
        process.leave_problem(error.problem)
        return USER_MISTAKE
    except Exception as error:
        from espalier.trainer.jobs.hub_problems import HubError  # noqa: PLC0415 - needs the hub's client

        if not isinstance(error, HubError):
            raise
        process.leave_problem(error.problem)
        return FAULT
    return 0


def _bring_base(order: Order, progress: Progress) -> tuple[Path, Facts, Mapping[str, str]]:
    """Where the base lies, the facts about it, and the SHA-256 that the hub promises."""
    wanted = Wanted(order.wanted, order.chat_template)
    if order.base is None:
        known = base_directory(order.volume, order.digest)
        return known, _inspected(known, Wanted(order.wanted)), {}
    staged = order.staging / order.base.staged
    if order.base.directory is not None:
        facts = _inspected(order.base.directory, wanted)
        remove(staged)
        staged.mkdir()
        copy_directory(staged, order.base.directory, order.chat_template, progress)
        return staged, facts, {}
    _, promised = _download(order, order.base, "ESPALIER_BASE_TOKEN", progress)
    facts = _inspected(staged, wanted)
    files = set(model_files(staged))
    for path in [p for p in staged.rglob("*") if p.is_file() and p not in files]:
        path.unlink()
    _give_template(staged, order.chat_template)
    given = {TEMPLATE} if order.chat_template else set()
    return staged, facts, {n: digest for n, digest in promised.items() if n not in given}


def _inspected(source: Path, wanted: Wanted) -> Facts:
    # Imported here: a hub's refusal should not wait for torch.
    from espalier.trainer.jobs.base_check import inspect  # noqa: PLC0415

    return inspect(source, wanted)


def _give_template(base: Path, chat_template: str) -> None:
    """Writes the template where transformers and vLLM look first."""
    if chat_template:
        (base / TEMPLATE).write_text(chat_template)


def _download(
    order: Order, source: Source, token: str, progress: Progress | None = None
) -> tuple[Path, Mapping[str, str]]:
    """Downloads a repository; returns where it is, and the SHA-256 that the hub promises.

    The files stay for a retry. ``token`` is the variable with the hub's token.
    """
    # Imported here: importing from a directory needs no hub client.
    from espalier.trainer.jobs.hub import Download  # noqa: PLC0415
    from espalier.trainer.jobs.hub_repository import Repository  # noqa: PLC0415

    repository = Repository.parse(source.hugging_face, source.field)
    target, given = order.staging / source.staged, os.environ.get(token, "")
    download = Download(repository, target, PATTERNS, given, _patience(), progress)
    return target, download.run()


def _patience() -> float:
    """Seconds without progress after which a download gives up."""
    text = os.environ.get("ESPALIER_HUB_PATIENCE_SECONDS", "900")
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserMistakeError(
            "InvalidSettings",
            f"ESPALIER_HUB_PATIENCE_SECONDS is {text!r}",
            "set hub.patienceSeconds of the chart's values to a number of seconds above 0",
        )
    return float(text)


if __name__ == "__main__":
    process.configure_logs()
    raise SystemExit(main())
