"""Trains a LoRA adapter of PEFT on a frozen base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from typing_extensions import override

from espalier.api.model.adapter import Adapter
from espalier.trainer.policy.trained import Trained
from espalier.trainer.problems import UserMistakeError
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.peft_adapter import CONFIG
from espalier.trainer.volume.shapes import Shapes, shapes_of
from espalier.trainer.volume.tensor_files import TensorFile

_ADAPTER = "default"


class Lora(Trained):
    """Parameters are float32 tensors by their PEFT name."""

    def __init__(self, causal_lm: nn.Module, adapter: Adapter, device: torch.device) -> None:
        _check(causal_lm, adapter)
        torch.manual_seed(adapter.seed)
        self.peft = _with_adapter(causal_lm, adapter)
        self.causal_lm: Any = self.peft.base_model.model
        if isinstance(self.causal_lm.get_output_embeddings(), LoraLayer):
            raise UserMistakeError(
                "UnsupportedTargetModules",
                "spec.adapter.targetModules covers the output head, which must stay frozen",
                "leave the head out, or use all-linear",
            )
        self.target_modules = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in self.peft.named_modules()
                if isinstance(module, LoraLayer)
            }
        )
        self.peft.to(device)
        self.parameters = self._named_parameters()
        self._initial = {name: value.detach().clone() for name, value in self.parameters.items()}

    @property
    @override
    def initial(self) -> Mapping[str, Tensor]:
        return self._initial

    @override
    @contextmanager
    def replaced_by(self, other: Mapping[str, Tensor] | None) -> Iterator[None]:
        if other is None:
            with self.peft.disable_adapter():
                yield
            return
        own = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = other[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    @override
    def files(self, shapes: Shapes) -> list[TensorFile]:
        return tensor_files.lora_files(shapes)

    @override
    def write_configuration(self, directory: Path) -> None:
        text = json.dumps(self.configuration(), sort_keys=True, indent=1)
        (directory / CONFIG).write_text(text)

    def configuration(self) -> dict[str, Any]:
        """PEFT's configuration with an explicit list of modules, as vLLM wants it."""
        config = json.loads(json.dumps(self.peft.peft_config[_ADAPTER].to_dict(), default=_plain))
        config.update(
            base_model_name_or_path="base",
            inference_mode=True,
            target_modules=self.target_modules,
        )
        return dict(config)

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        trained = {
            name.replace(f".{_ADAPTER}.", "."): parameter
            for name, parameter in self.peft.named_parameters()
            if parameter.requires_grad
        }
        saved = set(get_peft_model_state_dict(self.peft, adapter_name=_ADAPTER))
        assert set(trained) == saved, "PEFT saves other names than it trains"
        return trained


def adapter_shapes(base: Path, adapter: Adapter) -> Shapes:
    """The shape of every adapter weight on a base, by PEFT's name; reads no weights."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(config)
        _check(causal_lm, adapter)
        adapted = _with_adapter(causal_lm, adapter)
    return shapes_of(get_peft_model_state_dict(adapted, adapter_name=_ADAPTER))


def _check(causal_lm: nn.Module, adapter: Adapter) -> None:
    wanted = adapter.target_modules
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
    return get_peft_model(causal_lm, config, adapter_name=_ADAPTER)


def _plain(value: Any) -> Any:
    """Sets and enums of PEFT's configuration as JSON."""
    if isinstance(value, set):
        return sorted(value)
    return str(getattr(value, "value", value))
