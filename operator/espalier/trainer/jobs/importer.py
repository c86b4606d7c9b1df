"""Brings a base model to the volume, once: ``python -m espalier.trainer.jobs.importer``.

With ``--adapter`` it also takes over a LoRA adapter from outside, as step 0 of a model on the base.
Prints and leaves in the termination log its result, ``{"uri", "revision", "digest"}`` of the
base, its ``contextTokens`` and whether a ``chatTemplate`` is there, and ``"adapter": {"digest",
"sizeBytes"}``; or a Problem.
"""

from __future__ import annotations

from espalier.termination import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import argparse
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from espalier import process
from espalier.api.exit_codes import FAULT, USER_MISTAKE
from espalier.api.model.adapter import Adapter
from espalier.api.source import Resolved
from espalier.api.wire.problem import Problem
from espalier.trainer.jobs.import_progress import Progress, served
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
from espalier.trainer.volume.checkpoint_store import (
    NOTHING_PROMISED,
    CheckpointStore,
    DigestError,
    Stored,
)
from espalier.trainer.volume.durable_files import volume_written

_HUB = "OWNER/NAME@REVISION"
_BASE_FIELD = "spec.source.base.huggingFace"
_ADAPTER_FIELD = "spec.source.adapter.huggingFace"


class DamagedError(Exception):
    """The bytes differ from their source's; another try may fetch them whole."""


def import_directory(
    store: CheckpointStore, source: Path, chat_template: str = "", progress: Progress | None = None
) -> Stored:
    """Imports the model in ``source`` as a base; the same files give the same digest.

    A ``chat_template``, unless empty, replaces the base's own.
    """
    files = model_files(source)
    size = sum(path.stat().st_size for path in files)
    check_space(store.root, size, "spec.source.base")
    with store.staging("base") as staged:
        if progress is not None:
            targets = [staged / path.relative_to(source) for path in files]
            progress.begin(size, lambda: sum(size_of(target) for target in targets))
        for path in files:
            target = staged / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        _give_template(staged, chat_template)
        return store.commit("base", staged, {})[0]


def import_download(
    store: CheckpointStore,
    download: Path,
    chat_template: str = "",
    promised: Mapping[str, str] = NOTHING_PROMISED,
) -> Stored:
    """Makes the model in ``download``, already on the volume, the base in place.

    Until then nothing in it is lost if the process ends.
    """
    wanted = set(model_files(download))
    for path in [p for p in download.rglob("*") if p.is_file() and p not in wanted]:
        path.unlink()
    _give_template(download, chat_template)
    try:
        return store.commit("base", download, {}, promised)[0]
    except DigestError as error:
        raise DamagedError(str(error)) from error


def _give_template(base: Path, chat_template: str) -> None:
    """Writes the template where transformers and vLLM look first."""
    if chat_template:
        (base / TEMPLATE).write_text(chat_template)


def import_adapter(
    store: CheckpointStore, source: Path, adapter: Adapter, *, model: str, base: str
) -> Stored:
    """Imports the adapter in ``source`` as a model's step 0; UserMistakeError if it is unfit."""
    # Imported here: importing a base needs no torch.
    from espalier.trainer.engine import checkpoint_files  # noqa: PLC0415
    from espalier.trainer.policy.lora import adapter_shapes  # noqa: PLC0415
    from espalier.trainer.volume import peft_adapter  # noqa: PLC0415

    if adapter.type != "LoRA":
        raise UserMistakeError(
            "AdapterMismatch",
            f"spec.adapter.type is {adapter.type}, and an adapter fits LoRA alone",
            "import it for a model of type LoRA, or merge it into its base and fork from that",
        )
    stored = _known_base(store, base)
    parameters = peft_adapter.read(source, adapter, adapter_shapes(stored.path, adapter))
    return checkpoint_files.write_imported(store, parameters, adapter, model=model, base=base)


def _known_base(store: CheckpointStore, digest: str) -> Stored:
    try:
        return store.verify("base", digest)
    except DigestError as error:
        raise UserMistakeError("BaseUnreadable", str(error), "import the base first") from error


def main() -> int:
    """The exit code: 0, 64 for a user's mistake, 1 if a retry may succeed."""
    given = _arguments()
    volume, model = Path(os.environ.get("ESPALIER_VOLUME", "/weights")), given.model
    store = CheckpointStore(volume, model, "importer")
    try:
        adapter = Adapter.model_validate_json(os.environ.get("ESPALIER_ADAPTER", "{}"))
        store.make_folders()
        with served(progress := Progress()):
            report = _import_base(store, given, adapter, progress)
            if given.model:
                report["adapter"] = _import_adapter(store, given, str(report["digest"]), adapter)
    except (UserMistakeError, CommandError) as error:
        process.leave_problem(error.problem)
        return USER_MISTAKE
    except DamagedError as error:
        damaged = Problem(reason="DownloadDamaged", detail=str(error), remedy="check the mirror")
        process.leave_problem(damaged)
        return FAULT
    except Exception as error:
        from espalier.trainer.jobs.hub_problems import HubError  # noqa: PLC0415 - needs the hub's client

        if not isinstance(error, HubError):
            raise
        process.leave_problem(error.problem)
        return FAULT
    process.leave_message(report)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Brings a base model to the volume")
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--directory", type=Path)
    base.add_argument("--hugging-face", metavar=_HUB)
    base.add_argument("--base", metavar="DIGEST", help="a base that is on the volume already")
    adapter = parser.add_mutually_exclusive_group()
    adapter.add_argument("--adapter", type=Path, help="a LoRA adapter of PEFT; needs --model")
    adapter.add_argument("--adapter-hugging-face", metavar=_HUB)
    parser.add_argument("--model", default="", help="whose step 0 the adapter becomes")
    given = parser.parse_args()
    with_adapter = given.adapter is not None or given.adapter_hugging_face is not None
    if with_adapter != bool(given.model) or (given.base is not None and not with_adapter):
        parser.error("an adapter needs --model, and --base and --model need an adapter")
    return given


def _inspected(source: Path, wanted: Wanted) -> Facts:
    # Imported here: a hub's refusal should not wait for torch.
    from espalier.trainer.jobs.base_check import inspect  # noqa: PLC0415

    return inspect(source, wanted)


def _import_base(
    store: CheckpointStore, given: argparse.Namespace, adapter: Adapter, progress: Progress
) -> dict[str, object]:
    wanted = Wanted(adapter, os.environ.get("ESPALIER_CHAT_TEMPLATE", ""))
    template, revision = wanted.chat_template, ""
    if given.base is not None:
        stored = _known_base(store, given.base)
        facts = _inspected(stored.path, Wanted(adapter))
    elif given.directory is not None:
        facts = _inspected(given.directory, wanted)
        stored = import_directory(store, given.directory, template, progress)
    else:
        token = os.environ.get("ESPALIER_BASE_TOKEN", "")
        asked = given.hugging_face, _BASE_FIELD, token
        with _downloaded(store, *asked, progress) as (source, promised):
            facts = _inspected(source, wanted)
            stored = import_download(store, source, template, promised)
        revision = given.hugging_face.partition("@")[2]
    report = Resolved(
        uri=f"file://{stored.path}",
        revision=revision,
        digest=stored.digest,
        context_tokens=facts.context_tokens,
        chat_template="Present" if facts.chat_template else "Missing",
        unstopped_turn_end=facts.unstopped,
    )
    return report.wire()


def _import_adapter(
    store: CheckpointStore, given: argparse.Namespace, base: str, wanted: Adapter
) -> dict[str, object]:
    if given.adapter is not None:
        stored = import_adapter(store, given.adapter, wanted, model=given.model, base=base)
    else:
        token = os.environ.get("ESPALIER_ADAPTER_TOKEN", "")
        with _downloaded(store, given.adapter_hugging_face, _ADAPTER_FIELD, token) as (source, _):
            stored = import_adapter(store, source, wanted, model=given.model, base=base)
    return {"digest": stored.digest, "sizeBytes": stored.size_bytes}


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


@contextmanager
def _downloaded(
    store: CheckpointStore, text: str, field: str, token: str, progress: Progress | None = None
) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Downloads a repository; returns the SHA-256 that the hub promises.

    The files are kept only for a retry, and removed after a user's mistake.
    """
    # Imported here: importing from a directory needs no hub client.
    from espalier.trainer.jobs.hub import Download  # noqa: PLC0415
    from espalier.trainer.jobs.hub_repository import Repository  # noqa: PLC0415

    name = hashlib.sha256(f"{field} {text}".encode()).hexdigest()[:16]
    target = store.download(os.environ.get("ESPALIER_MODEL", ""), name)
    repository = Repository.parse(text, field)
    try:
        with volume_written(target.parent):
            download = Download(repository, target, PATTERNS, token, _patience(), progress)
            promised = download.run()
            yield target, promised
    except (UserMistakeError, DamagedError):
        store.discard_download(target)
        raise
    store.discard_download(target)


if __name__ == "__main__":
    process.configure_logs()
    raise SystemExit(main())
