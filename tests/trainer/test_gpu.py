"""The trainer on a GPU, held against the same on the CPU. `make gpu` runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.test_crash import SCRIPT, Fuse, fresh, outcome
from tests.trainer.test_families import FAST, SIZES, batch, gradients
from tests.trainer.tiny import Volume
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.api.model.adapter import Adapter
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.packing import pack
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.memory.planner import Cut
from espalier.trainer.policy.policy import Policy
from espalier.trainer.policy.self_check import padded as padded_path
from espalier.trainer.policy.tree_attention import BucketLayout, VarlenLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Wide enough that bfloat16's rounding is that of a model, and not of a few numbers.
WIDE = SIZES | {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
LOSS = loss_spec("importance_sampling", None)


def policy_of(
    family: str, changes: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Policy:
    """A random model with an adapter that changes it: the same weights on every device."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | {"tie_word_embeddings": False} | changes))
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    policy = Policy(AutoModelForCausalLM.from_config(config).to(dtype), tiny.ADAPTER, device)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(policy.parameters.items()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter))
    return policy


def measured(policy: Policy) -> tuple[Tensor, Tensor]:
    """Log-probs of a row with shared prefixes, and the gradient of a loss that weighs each."""
    (row,) = pack([replace(datum, temperature=0.7) for datum in batch()], 1000)
    logprobs = policy.evaluate(row).logprobs
    logprobs.backward(torch.linspace(-1, 2, len(logprobs)).to(logprobs))
    found = gradients(policy)
    whole = torch.cat([value.double().flatten() for _, value in sorted(found.items())])
    return logprobs.detach().double().cpu(), whole.cpu()


def off(ours: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Largest difference of log-probs; that of the whole gradient by its length."""
    gradient = (ours[1] - right[1]).norm() / right[1].norm()
    return float((ours[0] - right[0]).abs().max()), float(gradient)


@pytest.mark.parametrize(("family", "changes"), FAST)
def test_float32_equals_the_cpu(family: str, changes: dict[str, Any]) -> None:
    policy = policy_of(family, changes, torch.float32, GPU)
    assert policy.warning is None
    right = measured(policy_of(family, changes, torch.float32, CPU))
    logprobs, gradient = off(measured(policy), right)
    assert logprobs <= 1e-4
    assert gradient <= 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bfloat16_is_as_near_to_float32_as_the_familys_own_code(family: str) -> None:
    policy = policy_of(family, WIDE, torch.bfloat16, GPU)
    assert policy.warning is None
    # The same rounded weights, computed with in float32.
    wide = policy_of(family, WIDE, torch.bfloat16, CPU)
    wide.causal_lm.float()
    right = measured(wide)
    fast = off(measured(policy), right)
    policy.warning = padded_path("UnknownFamily", "as if the family were not known")
    padded = off(measured(policy), right)
    assert fast[0] <= max(1.25 * padded[0], 0.02)
    assert fast[1] <= max(1.25 * padded[1], 0.01)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_varlen_kernel_equals_buckets_forward_and_backward(window: int | None) -> None:
    """In half precision, of 4 heads of queries and 2 of keys, against float32 on the CPU."""
    (row,) = pack(batch(), 1000)
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, len(row.tokens), 64), (2, len(row.tokens), 64), (2, len(row.tokens), 64)]
    drawn = [torch.randn(size, generator=generator).bfloat16() for size in sizes]
    upstream = torch.randn((len(row.tokens), 4, 64), generator=generator).bfloat16()

    def run(layout: BucketLayout | VarlenLayout, inputs: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.requires_grad_() for tensor in inputs]
        query, key, value = leaves
        mixed = layout.attend(query, key, value, 0.3, window)
        found = torch.autograd.grad(mixed, leaves, upstream.to(mixed))
        return [tensor.detach().float().cpu() for tensor in (mixed, *found)]

    ours = run(VarlenLayout.of(row, GPU), [tensor.to(GPU) for tensor in drawn])
    right = run(BucketLayout(row, CPU), [tensor.float() for tensor in drawn])
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_a_real_lack_of_memory_is_retried_with_shorter_rows() -> None:
    """The planner is told of memory that the GPU does not give."""
    sizes = WIDE | {"vocab_size": 8192, "max_position_embeddings": 4096}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **sizes, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    policy = Policy(AutoModelForCausalLM.from_config(config), Adapter(rank=8, alpha=16), GPU)
    data = long_data()
    compute = LocalCompute(policy)
    compute.planner = replace(compute.planner, available=1 << 60)
    whole = compute.admit(data, LOSS)
    assert len(whole.plans[0].rows.with_grad) == 1
    alone = compute.planner.cut(data, Cut(1, checkpointing=False)).needed
    expected = compute.add_loss(whole, LOSS, None)
    assert expected.cuts == (whole.plans[0].cut,)
    right = gradients(policy)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    # Half as much again as the longest datum takes alone: too little for the one row of them all.
    room = torch.cuda.memory_reserved() + (alone + whole.plans[0].needed) // 2
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        added = compute.add_loss(compute.admit(data, LOSS), LOSS, None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (cut,) = added.cuts
    assert cut.row_tokens < whole.plans[0].cut.row_tokens
    for name, value in gradients(policy).items():
        torch.testing.assert_close(
            value, right[name], rtol=1e-3, atol=1e-4 * float(value.abs().max())
        )


def long_data() -> list[Datum]:
    """Eight sequences of 512 tokens that share nothing."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randint(1, 8192, (8, 512), generator=generator).tolist()
    return [
        Datum(tuple(t[:32]), tuple(t[32:]), (-9.0,) * 480, (-1.0) ** n, 0.0, n, None)
        for n, t in enumerate(drawn)
    ]


def test_a_killed_trainer_replays_to_the_same_bits(tiny_base: Volume, tmp_path: Path) -> None:
    straight = lived(tiny_base, tmp_path / "straight", [])
    assert len(straight["digests"]) == 2
    for kill_at in (9, 21, 33, 47):
        killed = lived(tiny_base, tmp_path / str(kill_at), [kill_at])
        assert killed == straight


def lived(tiny_base: Volume, path: Path, kills: list[int]) -> dict[str, Any]:
    """What the training of tests/trainer/test_crash.py leaves when it is killed so often.

    Every life is a process of its own: CUDA does not survive a fork.
    """
    path.mkdir()
    volume = fresh(tiny_base, path)
    for kill_at in [*kills, -1]:
        code = (
            "from pathlib import Path; from tests.trainer.test_gpu import live; "
            f"live(Path({str(path)!r}), {volume.base!r}, {kill_at})"
        )
        root = Path(__file__).parents[2]
        paths = os.pathsep.join(
            [str(root / "operator"), str(root), os.environ.get("PYTHONPATH", "")]
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=False
        )
        assert done.returncode == (-signal.SIGKILL if kill_at >= 0 else 0)
    return dict(json.loads((path / "outcome").read_text()))


def live(path: Path, base: str, kill_at: int) -> None:
    """One life of a trainer on the GPU, from where the last one ended."""
    acknowledged = path / "acknowledged"
    volume = Volume(path, base)
    Fuse(kill_at).arm()
    policy = tiny.policy(path, base)
    assert policy.device.type == "cuda"
    engine = tiny.engine(path, base, policy)
    engine.assign(tiny.assignment())
    done = len(acknowledged.read_text()) if acknowledged.exists() else 0
    for seq in range(done, len(SCRIPT)):
        kind, request = SCRIPT[seq]
        assert tiny.send(engine, kind, request, ("client", seq), term=1).status == 200
        with acknowledged.open("a") as file:
            file.write(".")
    engine.state.log.close()
    digests, weights, _ = outcome(volume, policy)
    sums = {name: value.double().sum().item() for name, value in sorted(weights.items())}
    (path / "outcome").write_text(json.dumps({"digests": digests, "sums": sums}))
