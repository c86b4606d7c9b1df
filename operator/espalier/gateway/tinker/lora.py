"""From Tinker's LoRA configuration to a model's adapter, or why it cannot be had. Pure."""

from __future__ import annotations

from typing import Any

from espalier.api.model.adapter import Adapter
from espalier.gateway.tinker.bodies import LoraConfig

MAX_RANK = 256
MAX_SEED = 2**31 - 1
ALL_LINEAR = "all-linear"
# Names of the layers in the families of Llama, Mistral, Qwen, Gemma and SmolLM.
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
MLP = ("down_proj", "gate_proj", "up_proj")
UNEMBED_WARNING = (
    "train_unembed is taken for False: the output layer is not trained, because an adapter of it "
    "is served for some bases alone. Attention and MLP layers are trained as asked for"
)


def adapter_spec(asked: LoraConfig) -> dict[str, Any] | str:
    """The adapter of a new model; a text says which field cannot be had, and the remedy."""
    if problem := _problem(asked):
        return problem
    spec: dict[str, Any] = {"type": "LoRA", "rank": asked.rank}
    if asked.seed is not None:
        spec["seed"] = asked.seed
    if not (asked.train_attn and asked.train_mlp):
        spec["targetModules"] = list(ATTENTION if asked.train_attn else MLP)
    return spec


def mismatch(asked: LoraConfig, adapter: Adapter) -> str:
    """Why an existing model is not what is asked for; empty if it is."""
    if problem := _problem(asked):
        return problem
    if adapter.type != "LoRA":
        return "base_model names a model of adapter.type Full, and Tinker's clients train LoRA"
    wanted = Adapter.model_validate(adapter_spec(asked))
    pairs = [
        ("rank", adapter.rank, wanted.rank),
        ("train_attn and train_mlp", sorted(adapter.target_modules), sorted(wanted.target_modules)),
    ]
    if asked.seed is not None:
        pairs.append(("seed", adapter.seed, wanted.seed))
    wrong = [
        f"{field}: the model has {mine}, not {theirs}"
        for field, mine, theirs in pairs
        if mine != theirs
    ]
    return (
        f"{'; '.join(wrong)}. Ask for what it has, or for a new model of its base" if wrong else ""
    )


def trains(adapter: Adapter) -> dict[str, bool]:
    """Which layers an adapter trains, in Tinker's words."""
    modules = set(adapter.target_modules)
    whole = ALL_LINEAR in modules or adapter.type == "Full"
    return {
        "train_attn": whole or bool(modules & set(ATTENTION)),
        "train_mlp": whole or bool(modules & set(MLP)),
        "train_unembed": adapter.type == "Full",
    }


def _problem(asked: LoraConfig) -> str:
    if not 1 <= asked.rank <= MAX_RANK:
        return f"rank is {asked.rank}: take one of 1 to {MAX_RANK}"
    if asked.seed is not None and not 0 <= asked.seed <= MAX_SEED:
        return f"seed is {asked.seed}: take one of 0 to {MAX_SEED}, or leave it out"
    if not (asked.train_attn or asked.train_mlp):
        return (
            "train_unembed alone trains nothing: the output layer is not trained, because an "
            "adapter of it is served for some bases alone. Set train_attn or train_mlp"
        )
    return ""
