"""Checks a base before its import: it must be trainable and servable.

It reads no tensor, only the headers of their files, and builds the model on the meta device. It
runs nothing of the base: no remote code, no pickle.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from espalier.api.model.adapter import Adapter
from espalier.api.source import TurnEnd
from espalier.trainer.problems import UserMistakeError, volume_problem
from espalier.trainer.volume.base_files import (
    CONFIG,
    TEMPLATE,
    Facts,
    Wanted,
    config,
    model_files,
    shard_of,
    some,
    unreadable,
)

SERVED = Path(__file__).with_name("served_architectures.json")
# More than any model has: a hostile configuration's layers would be built one by one.
MOST_LAYERS = 1000
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# The configuration names from which vLLM reads a model's length.
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Kinds of rotary embedding whose length already includes the factor, or ignores it.
_UNSTRETCHED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")

T = TypeVar("T")


def inspect(source: Path, wanted: Wanted) -> Facts:
    """The facts about the base in ``source``; raises UserMistakeError naming its fault."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    files = model_files(source)
    with TemporaryDirectory() as scratch:
        # Look only at the files that will be imported.
        view = Path(scratch)
        for path in files:
            place = view / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
        if wanted.chat_template:
            (view / TEMPLATE).unlink(missing_ok=True)
            (view / TEMPLATE).write_text(wanted.chat_template)
        _check_headers(view)
        architecture = _check_served(config(view), wanted.adapter)
        known = _opened(source, CONFIG, lambda: _configuration(view))
        _check_kind(known, architecture)
        _check_tensors(source, view, architecture)
        tokenizer = _check_tokenizer(source, view, wanted.chat_template)
        unstopped = _unstopped_turn_end(tokenizer, _ends(view, known, tokenizer))
    return Facts(context_tokens(known), bool(tokenizer.chat_template), unstopped)


def context_tokens(known: Any) -> int | None:
    """The longest context at which vLLM serves a configuration; None: any."""
    text = known.get_text_config()
    lengths = [value for name in _LENGTHS if (value := getattr(text, name, None)) is not None]
    if not lengths:
        return None
    length = getattr(text, "model_max_length", None) or min(lengths)
    if "gemma3" in known.model_type:
        return int(length)
    factor = 1.0
    for rope in _ropes(getattr(text, "rope_parameters", None) or {}):
        if rope.get("rope_type", "default") not in _UNSTRETCHED:
            factor = rope.get("factor") or factor
    return int(length * factor)


def served(*, adapters: bool) -> Collection[str]:
    """The architectures that the pinned vLLM serves; with ``adapters`` those that take LoRA."""
    listed = json.loads(SERVED.read_text())
    architectures: list[str] = listed["adapters"] + ([] if adapters else listed["withoutAdapters"])
    return architectures


def _configuration(view: Path) -> Any:
    return AutoConfig.from_pretrained(view, local_files_only=True, trust_remote_code=False)


def _ropes(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The rotary parameters: one set, or one for each kind of layer."""
    if "rope_type" in parameters or "factor" in parameters:
        return [parameters]
    return [value for value in parameters.values() if isinstance(value, dict)]


def _check_headers(view: Path) -> None:
    """Checks that every shard opens and has the tensors that the index lists."""
    index = shard_of(view)
    for path in sorted(view.rglob("*.safetensors")):
        name = path.relative_to(view).as_posix()
        try:
            with safe_open(path, framework="pt") as shard:
                present = set(shard.keys())
        except SafetensorError as error:
            raise unreadable(
                f"{name} is damaged: {error}", "download it again: it may be cut short"
            ) from error
        lost = {tensor for tensor, place in index.items() if place == name} - present
        if lost:
            raise unreadable(
                f"the index says that {some(lost)} is in {name}, which lacks it",
                "download the index and the weights of one and the same revision",
            )


def _check_served(content: dict[str, Any], adapter: Adapter) -> str:
    """Checks that vLLM can serve the base's architecture as the model asks; returns it."""
    named = content.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise _unsupported(f"{CONFIG} names no architectures", "give the base's own config.json")
    architecture = named[0]
    nested = [name for name in ("vision_config", "audio_config") if content.get(name)]
    if nested:
        raise _unsupported(
            f"{architecture} is multimodal (it has {' and '.join(nested)}): adapters on its text "
            "layers alone are not supported yet",
            "use a base for text alone",
        )
    if architecture in served(adapters=adapter.type == "LoRA"):
        return architecture
    if architecture in served(adapters=False):
        raise _unsupported(
            f"vLLM cannot serve adapters on {architecture}",
            "set spec.adapter.type: Full, or use another base",
        )
    raise _unsupported(
        f"vLLM does not serve {architecture} as a language model", "use another base"
    )


def _check_kind(known: Any, architecture: str) -> None:
    if getattr(known, "quantization_config", None):
        raise _unsupported(
            "the base is quantised (quantization_config)",
            "use the base in float32, bfloat16 or float16",
        )
    if getattr(known, "is_encoder_decoder", False):
        raise _unsupported(f"{architecture} has an encoder", "use a decoder-only base")
    layers = getattr(known.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        raise _unsupported(
            f"{CONFIG}: num_hidden_layers is {layers!r}, must be 1 to {MOST_LAYERS}",
            "give the base's own config.json",
        )


def _check_tensors(source: Path, view: Path, architecture: str) -> None:
    """Checks that the files hold exactly the tensors of the architecture.

    transformers only warns of missing tensors and draws them at random each time.
    """
    _, loading = _opened(
        source,
        "the base",
        lambda: AutoModelForCausalLM.from_pretrained(
            view,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        ),
    )
    wrong = []
    if loading["missing_keys"]:
        wrong.append(f"they lack {some(loading['missing_keys'])}")
    if loading["unexpected_keys"]:
        wrong.append(f"they have besides {some(loading['unexpected_keys'])}")
    shapes = [
        f"{name} is {list(has)}, must be {list(must)}"
        for name, has, must in loading["mismatched_keys"]
    ]
    if shapes:
        wrong.append(some(shapes))
    if wrong:
        raise unreadable(
            f"the weights are not those of {architecture} with this {CONFIG}: {'; '.join(wrong)}",
            "save the model with transformers' save_pretrained, unwrapped and whole",
        )


def _check_tokenizer(source: Path, view: Path, given: str) -> Any:
    """The tokenizer; checks that its chat template, if any, renders a chat."""
    if not any((view / name).is_file() for name in _TOKENIZERS):
        raise unreadable(
            f"there is no tokenizer: none of {', '.join(_TOKENIZERS)}",
            "put the tokenizer's files beside the weights",
        )
    tokenizer = _opened(
        source,
        "the tokenizer",
        lambda: AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False),
    )
    if not tokenizer.chat_template:
        return tokenizer
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "1"}], add_generation_prompt=True, tokenize=True
        )
    except Exception as error:
        where = "spec.source.base.chatTemplate" if given else "the base's chat template"
        raise UserMistakeError(
            "ChatTemplateInvalid",
            f"{where} cannot render a user's message: {error}",
            "correct it, or give another in spec.source.base.chatTemplate",
        ) from error
    return tokenizer


def _ends(view: Path, known: Any, tokenizer: Any) -> set[int]:
    """The tokens at which vLLM ends a completion of this base by default.

    They are the tokenizer's, and those of generation_config.json, or of config.json if that cannot
    be read.
    """
    try:
        given = json.loads((view / "generation_config.json").read_bytes()).get("eos_token_id")
    except (OSError, ValueError, AttributeError, RecursionError):
        given = getattr(known, "eos_token_id", None)
    more = given if isinstance(given, list) else [given]
    return {end for end in (tokenizer.eos_token_id, *more) if isinstance(end, int)}


def _unstopped_turn_end(tokenizer: Any, ends: Collection[int]) -> TurnEnd | None:
    """The special token that closes an assistant's turn, if it does not end a completion.

    It is where two chats that differ only in the assistant's words become equal again.
    """
    if not tokenizer.chat_template:
        return None
    try:
        one, other = (_rendered(tokenizer, words) for words in ("0", "1"))
    except Exception:
        # Some templates refuse a chat that ends with the assistant; then this stays unknown.
        return None
    backwards = zip(reversed(one), reversed(other), strict=False)
    tail = [token for token, twin in takewhile(lambda pair: pair[0] == pair[1], backwards)]
    if not tail or tail[-1] in ends or tail[-1] not in tokenizer.added_tokens_decoder:
        return None
    return TurnEnd(token=str(tokenizer.convert_ids_to_tokens(tail[-1]))[:64], token_id=tail[-1])


def _rendered(tokenizer: Any, words: str) -> list[int]:
    """The tokens of a chat in which the assistant says these words."""
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": words}]
    tokens: list[int] = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    return tokens


def _opened(source: Path, what: str, open_: Callable[[], T]) -> T:
    """A library's result on untrusted files; any error that it raises is about the files."""
    try:
        return open_()
    except Exception as error:
        if volume_problem(error, source) is not None:
            raise
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _unsupported(
            f"{what} cannot be loaded: {text}",
            "use a causal language model of transformers in safetensors, with its tokenizer and "
            "without code of its own",
        ) from error


def _unsupported(detail: str, remedy: str) -> UserMistakeError:
    return UserMistakeError("UnsupportedBase", detail, remedy)
