"""The policy: a frozen base model with a LoRA adapter, and the log-probs of packed rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.api.trainablemodel import Adapter
from espalier.api.wire import Problem
from espalier.trainer import self_check
from espalier.trainer.attention import TREE_ATTENTION, layout
from espalier.trainer.data import Limits
from espalier.trainer.head import Evaluated, evaluate
from espalier.trainer.packing import Row
from espalier.trainer.padded import evaluate_padded
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.weights import Shapes, State, difference, shapes_of

ADAPTER = "default"
# Bounds the activations of a row.
ROW_TOKENS = {"cpu": 2048, "cuda": 8192}


class Policy:
    """Parameters are float32 tensors by their PEFT name; the base stays frozen.

    ``warning`` says why rows are computed on the padded path; None on the fast path.
    """

    def __init__(self, causal_lm: nn.Module, adapter: Adapter, device: torch.device) -> None:
        self.adapter = adapter
        self.device = device
        self._check_adapter(causal_lm)
        torch.manual_seed(adapter.seed)
        self._peft = _with_adapter(causal_lm, adapter)
        self._causal_lm: Any = self._peft.base_model.model
        self._trunk: Any = self._causal_lm.get_decoder()
        self._head: Any = self._causal_lm.get_output_embeddings()
        if isinstance(self._head, LoraLayer):
            raise UserMistakeError(
                "UnsupportedTargetModules",
                "spec.adapter.targetModules covers the output head, which must stay frozen",
                "leave the head out, or use all-linear",
            )
        self.target_modules = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in self._peft.named_modules()
                if isinstance(module, LoraLayer)
            }
        )
        self._peft.to(device)
        self._peft.train()
        self.parameters = self._named_parameters()
        self._initial = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.limits = Limits(
            vocabulary=int(self._head.weight.shape[0]),
            context=int(getattr(self._causal_lm.config, "max_position_embeddings", 1 << 20)),
        )
        self.row_tokens = ROW_TOKENS[device.type]
        self._plain_attention = _plain_attention(self._trunk.config)
        self.warning = self._choose_path()

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model with its adapter, for those who measure it."""
        return self._causal_lm

    @property
    def checkpointing(self) -> bool:
        """Whether decoder layers keep only their input and compute again in backward."""
        return bool(self._causal_lm.is_gradient_checkpointing)

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        if value:
            self._causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self._causal_lm.gradient_checkpointing_disable()

    def evaluate(self, row: Row, temperature: float) -> Evaluated:
        """Log-probs and entropies of the row's N targets; log-probs differentiable by weights."""
        if self.warning is not None:
            return self._evaluate_padded(row, temperature)
        return self._evaluate_fast(row, temperature)

    def _evaluate_padded(self, row: Row, temperature: float) -> Evaluated:
        self._trunk.config._attn_implementation = self._plain_attention
        return evaluate_padded(self._causal_lm, row, temperature, self.device)

    def _evaluate_fast(self, row: Row, temperature: float) -> Evaluated:
        self._trunk.config._attn_implementation = TREE_ATTENTION
        output = self._trunk(
            input_ids=torch.from_numpy(row.tokens).to(self.device)[None],
            position_ids=torch.from_numpy(row.depths).to(self.device)[None],
            layout=layout(row, self.device, self._head.weight.dtype),
            use_cache=False,
        )
        reads = torch.from_numpy(row.reads).to(self.device)
        targets = torch.from_numpy(row.targets).to(self.device)
        hidden = output.last_hidden_state[0].index_select(0, reads)
        bias = getattr(self._head, "bias", None)
        return evaluate(hidden, self._head.weight, bias, targets, temperature)

    def _choose_path(self) -> Problem | None:
        return self_check.unknown_family(self._trunk.config) or self_check.compare(
            self._evaluate_fast,
            self._evaluate_padded,
            self.parameters,
            self.limits.vocabulary,
            self._head.weight.dtype,
        )

    def drop_gradients(self) -> None:
        """Forgets what was accumulated."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def check(self, state: State) -> None:
        """409 if a checkpoint's adapter has other names or shapes than this one."""
        if wrong := difference(shapes_of(state), shapes_of(self.parameters)):
            raise CommandError(
                409,
                "AdapterMismatch",
                f"the checkpoint's adapter is not this model's: {wrong}",
                "fork with the rank and targetModules of the checkpoint",
            )

    def load(self, state: State) -> None:
        """Sets every adapter parameter."""
        self.check(state)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def reset(self) -> None:
        """The fresh adapter of the seed: served log-probs equal the base's."""
        self.load(self._initial)

    def adapter_config(self) -> dict[str, Any]:
        """PEFT's configuration with an explicit list of modules, as vLLM wants it."""
        config = json.loads(json.dumps(self._peft.peft_config[ADAPTER].to_dict(), default=_plain))
        config.update(
            base_model_name_or_path="base",
            inference_mode=True,
            target_modules=self.target_modules,
        )
        return dict(config)

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        trained = {
            name.replace(f".{ADAPTER}.", "."): parameter
            for name, parameter in self._peft.named_parameters()
            if parameter.requires_grad
        }
        saved = set(get_peft_model_state_dict(self._peft, adapter_name=ADAPTER))
        assert set(trained) == saved, "PEFT saves other names than it trains"
        return trained

    def _check_adapter(self, causal_lm: nn.Module) -> None:
        wanted = self.adapter.target_modules
        names = {
            name.rsplit(".", 1)[-1]
            for name, module in causal_lm.named_modules()
            if isinstance(module, nn.Linear)
        }
        unknown = [] if wanted == ["all-linear"] else sorted(set(wanted) - names)
        if unknown:
            raise UserMistakeError(
                "UnknownTargetModules",
                f"spec.adapter.targetModules names {', '.join(unknown)}, which the base lacks",
                f"use all-linear or some of {', '.join(sorted(names))}",
            )


def load_policy(base: Path, adapter: Adapter, dtype: str) -> Policy:
    """The base on the GPU if there is one; raises UserMistakeError when it cannot be used."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        causal_lm = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype), local_files_only=True
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UserMistakeError(
            "UnsupportedBase",
            f"the base cannot be loaded: {error}",
            "use a Hugging Face causal language model in safetensors with its config.json",
        ) from error
    return Policy(causal_lm, adapter, device)


def adapter_shapes(base: Path, adapter: Adapter) -> Shapes:
    """The shape of every adapter weight on a base, by PEFT's name; no weights are read."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        adapted = _with_adapter(AutoModelForCausalLM.from_config(config), adapter)
    return shapes_of(get_peft_model_state_dict(adapted, adapter_name=ADAPTER))


def _plain_attention(config: Any) -> str:
    """What the padded path attends with: sdpa leaves out the soft cap of attention weights."""
    if getattr(config, "attn_logit_softcapping", None):
        return "eager"
    return str(config._attn_implementation)


def _with_adapter(causal_lm: nn.Module, adapter: Adapter) -> Any:
    all_linear = adapter.target_modules == ["all-linear"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear" if all_linear else list(adapter.target_modules),
    )
    return get_peft_model(causal_lm, config, adapter_name=ADAPTER)


def _plain(value: Any) -> Any:
    """Sets and enums of PEFT's configuration as JSON."""
    if isinstance(value, set):
        return sorted(value)
    return str(getattr(value, "value", value))
