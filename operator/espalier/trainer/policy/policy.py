"""The policy: a base model with trained weights, and log-probs of packed rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from espalier.api.model.adapter import Adapter
from espalier.api.wire.problem import Problem
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.packing import Row
from espalier.trainer.memory import host
from espalier.trainer.policy import fits, frozen_lm_head, self_check, trained_lm_head
from espalier.trainer.policy.frozen_lm_head import Evaluated
from espalier.trainer.policy.full import Full
from espalier.trainer.policy.lora import Lora
from espalier.trainer.policy.lora_linear import fuse, fusible
from espalier.trainer.policy.padded import evaluate_padded
from espalier.trainer.policy.sharding import Shards, Whole
from espalier.trainer.policy.trained import Trained
from espalier.trainer.policy.tree_attention import TREE_ATTENTION, layout
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume.base_files import some
from espalier.trainer.volume.shapes import Shapes, difference, shapes_of
from espalier.trainer.volume.tensor_files import Parts, TensorFile, Tensors

# Bounds the activations of a row.
ROW_TOKENS = {"cpu": 2048, "cuda": 8192}


class Policy:
    """``parameters`` are the trained float32 tensors by their name in a checkpoint.

    ``warning`` says why rows are computed on the padded path; None on the fast path. Training all
    weights needs ``base``, the directory that the causal LM was loaded from. With several ``ranks``
    each then holds a part of every weight, and ranks evaluate together.
    """

    def __init__(
        self,
        causal_lm: nn.Module,
        adapter: Adapter,
        device: torch.device,
        base: Path | None = None,
        ranks: int = 1,
    ) -> None:
        self.adapter = adapter
        self.device = device
        _stop_chance(causal_lm)
        self.sharding = Whole()
        if adapter.type == "Full" and ranks > 1:
            # Moved to the device in parts: the whole model is in host memory only.
            self.sharding = Shards(causal_lm, device)
        elif adapter.type == "Full":
            causal_lm.to(device)
        self.trained = _trained(causal_lm, adapter, device, base)
        self._causal_lm: Any = self.trained.causal_lm
        self._trunk: Any = self._causal_lm.get_decoder()
        self._head: Any = self._causal_lm.get_output_embeddings()
        self._causal_lm.train()
        self.parameters = self.trained.parameters
        # A frozen head's derivative is cheaper than a trained one's.
        self._evaluate_head = (
            frozen_lm_head.evaluate if adapter.lora_rank else trained_lm_head.evaluate
        )
        self.limits = Limits(
            vocabulary=int(self._head.weight.shape[0]),
            context=int(getattr(self._causal_lm.config, "max_position_embeddings", 1 << 20)),
        )
        self.row_tokens = ROW_TOKENS[device.type]
        self._fusible = fusible(self._causal_lm)
        self._plain_attention = _plain_attention(self._trunk.config)
        self.warning = self._choose_path()

    @property
    def causal_lm(self) -> Any:
        """The Hugging Face model with its adapter, for measurements."""
        return self._causal_lm

    @property
    def can_checkpoint(self) -> bool:
        """Whether the family's layers can be recomputed; all on the fast path can."""
        return bool(self._causal_lm.supports_gradient_checkpointing)

    @property
    def checkpointing(self) -> bool:
        """Whether decoder layers keep only their input and recompute in backward."""
        return bool(self._causal_lm.is_gradient_checkpointing)

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        if value:
            self._causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self._causal_lm.gradient_checkpointing_disable()

    def evaluate(self, row: Row, *, by_entropy: bool = False) -> Evaluated:
        """Log-probs and entropies of the row's N targets; log-probs differentiable by weights.

        ``by_entropy``: the entropies are too.
        """
        path = self._evaluate_fast if self.warning is None else self._evaluate_padded
        return self.sharding.run(lambda: path(row, by_entropy))

    def _evaluate_padded(self, row: Row, by_entropy: bool = False) -> Evaluated:
        self._trunk.config._attn_implementation = self._plain_attention
        fuse(self._fusible, fused=False)
        return evaluate_padded(self._causal_lm, row, self.device, by_entropy)

    def _evaluate_fast(self, row: Row, by_entropy: bool = False) -> Evaluated:
        self._trunk.config._attn_implementation = TREE_ATTENTION
        fuse(self._fusible, fused=True)
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
        return self._evaluate_head(
            hidden, self._head.weight, bias, targets, row.temperature, by_entropy
        )

    def _choose_path(self) -> Problem | None:
        run = self.sharding.run
        return self_check.unknown_family(self._trunk.config) or self_check.compare(
            lambda row: run(lambda: self._evaluate_fast(row)),
            lambda row: run(lambda: self._evaluate_padded(row)),
            self.parameters,
            vocabulary=self.limits.vocabulary,
            dtype=self._head.weight.dtype,
            sharding=self.sharding,
        )

    def drop_gradients(self) -> None:
        """Forgets what was accumulated."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @property
    def shapes(self) -> Shapes:
        """The shapes of the parameters."""
        return shapes_of(self.parameters)

    @property
    def files(self) -> list[TensorFile]:
        """The files of a checkpoint."""
        return self.trained.files(self.shapes)

    def check(self, shapes: Shapes) -> None:
        """409 if a checkpoint's weights have other names or shapes than the parameters."""
        if wrong := difference(shapes, self.shapes):
            raise CommandError(
                409,
                "AdapterMismatch",
                f"the checkpoint's adapter is not this model's: {wrong}",
                "fork with the type, rank and targetModules of the checkpoint",
            )

    def own(self) -> dict[str, nn.Parameter]:
        """This rank's part of every parameter, with its gradient, for an optimizer."""
        if self.sharding.size == 1:
            return self.parameters
        parts = {}
        for name, parameter in self.parameters.items():
            parts[name] = nn.Parameter(self.sharding.own(parameter.detach()))
            if parameter.grad is not None:
                parts[name].grad = self.sharding.own(parameter.grad)
        return parts

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Sets this rank's part of every parameter; the state may hold more."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.sharding.own(parameter).copy_(state[name])

    def part(self, tensors: Tensors) -> Mapping[str, Tensor]:
        """This rank's part of every tensor of some files."""
        return tensors if self.sharding.size == 1 else Parts(tensors, self.sharding.rows)

    def reset(self) -> None:
        """Returns to before the first step, where log-probs equal the base's."""
        initial = self.trained.initial
        self.load(self.part(initial) if isinstance(initial, Tensors) else initial)


def load_policy(base: Path, adapter: Adapter, dtype: str, ranks: int = 1) -> Policy:
    """Loads a base, onto the GPU if there is one; raises UserMistakeError if it cannot be used.

    For full training on several ranks, each rank loads the whole base before sharding it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        _sum_in_one_order()
    try:
        # The memory left now: another rank of the pod may have loaded the base already.
        fits.check(fits.footprint(base, adapter, dtype, ranks), host.free_memory(device, ranks=1))
        causal_lm, loading = AutoModelForCausalLM.from_pretrained(
            base, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    except (ValueError, OSError, KeyError, ImportError, SafetensorError) as error:
        raise UserMistakeError(
            "UnsupportedBase",
            f"the base cannot be loaded: {error}",
            "use a Hugging Face causal language model in safetensors with its config.json",
        ) from error
    if loading["missing_keys"]:
        # transformers would draw them at random. Imports of older versions did not check.
        raise UserMistakeError(
            "UnsupportedBase",
            f"the base lacks {some(loading['missing_keys'])}",
            "create the model again from complete weights",
        )
    if device.type == "cpu":
        _copy_from_files(causal_lm)
    return Policy(causal_lm, adapter, device, base, ranks)


def _copy_from_files(causal_lm: nn.Module) -> None:
    """Takes weights into memory of their own: transformers maps the files that it reads.

    What is written to such a file later would be in the weights at once.
    """
    for tensor in (*causal_lm.parameters(), *causal_lm.buffers()):
        tensor.data = tensor.data.clone()


def _sum_in_one_order() -> None:
    """Fixes the order of sums on a GPU, so a replayed call gives the same bits.

    Call it before the first product: cuBLAS reads its variable once
    (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory guards against reading it, at the price of a write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _trained(
    causal_lm: nn.Module, adapter: Adapter, device: torch.device, base: Path | None
) -> Trained:
    if adapter.type == "LoRA":
        return Lora(causal_lm, adapter, device)
    if base is None:
        raise ValueError("a model that is trained in full goes back to the files of its base")
    return Full(causal_lm, base)


def _stop_chance(causal_lm: nn.Module) -> None:
    """Disables dropout and router jitter: log-probs must repeat, and be those that sampled.

    Training mode must stay, because layers are computed again only in it. Families keep their rates
    in Dropout modules, or as numbers that a forward reads.
    """
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("dropout" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)


def _plain_attention(config: Any) -> str:
    """The attention of the padded path: sdpa would omit the soft cap of attention weights."""
    if getattr(config, "attn_logit_softcapping", None):
        return "eager"
    return str(config._attn_implementation)
