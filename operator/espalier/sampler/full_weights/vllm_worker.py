"""Runs in vLLM's workers: replaces the loaded weights.

vLLM 0.32 reloads weights layer by layer, in their own storage. On CPU it leaves one thing out: the
head computes with a packed copy of its weight, and where head and embedding are one weight that
copy is not made again, so that the old head answers, without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

logger = logging.getLogger("vllm.espalier.full_worker")


class FullWeights:
    """Mixed into vLLM's worker (``--worker-extension-cls``)."""

    def load_full_weights(self, files: list[str]) -> str:
        """Load weights of the served model's architecture; returns what failed, or an empty text.

        A text, since an exception here may end the engine.
        """
        worker: Any = self
        try:
            worker.reload_weights(weights_iterator=tensors(files))
            pack_embeddings(worker.get_model())
        except Exception as error:
            logger.exception("Loading full weights failed")
            return f"{type(error).__name__}: {error}"
        return ""


def tensors(files: list[str]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of safetensors files by name, read when asked for."""
    for file in files:
        with safe_open(Path(file), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def pack_embeddings(model: Any) -> None:
    """Pack the heads of a model again, from their present weights; only on CPU.

    Raises:
        AttributeError: vLLM packs them in another way than the version that pyproject pins.
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm  # noqa: PLC0415
    from vllm.model_executor.layers.vocab_parallel_embedding import (  # noqa: PLC0415
        VocabParallelEmbedding,
    )
    from vllm.platforms import current_platform  # noqa: PLC0415

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
