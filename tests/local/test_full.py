"""Full fine-tuning, end to end: what is trained is what is sampled, and a pin brings it back."""

from __future__ import annotations

from pathlib import Path

import pytest
from dev.ports import free_port
from tests.local.test_dev import HEAD, MANIFESTS, SAME, Prompt, dev, probe, varied
from tests.sampler.tiny import make_model

from espalier import Fit, FitConfig, Sampling, TrainingClient

LORA = "adapter: {rank: 8, alpha: 16}"


async def greedy(client: TrainingClient) -> tuple[list[int], list[float]]:
    """The completion that is always the same, and its log-probs as sampled."""
    messages = [{"role": "user", "content": "1"}]
    (found,) = await client.sample(messages, max_tokens=12, temperature=0.0)
    return list(found.token_ids), list(found.logprobs)


async def train(client: TrainingClient, steps: int) -> None:
    """Optimizer steps until there are so many; each returns once its weights are served."""
    small = FitConfig(
        steps=steps, learning_rate=1e-2, group=2, tasks_per_step=1, sampling=Sampling(max_tokens=4)
    )
    await Fit(client, [Prompt("1")], varied, small).fit_async()


@pytest.mark.vllm
@pytest.mark.timeout(900)
async def test_new_weights_are_sampled_after_each_step_and_old_ones_after_a_pin(
    tmp_path: Path,
) -> None:
    model, manifests = tmp_path / "model", tmp_path / "manifests"
    make_model(model, tied=False)
    manifests.mkdir()
    assert LORA in MANIFESTS
    (manifests / "model.yaml").write_text(MANIFESTS.replace(LORA, "adapter: {type: Full}"))
    (manifests / "head.yaml").write_text(HEAD.replace("MODE", "Track"))
    async with dev(manifests, model, free_port()) as running:
        found = await running.says(r"ESPALIER_GATEWAY_URL=(\S+) ESPALIER_TOKEN=(\S+)")
        await running.says("TrainingRun tiny: AwaitingClient")
        async with TrainingClient("tiny", base_url=found[1], token=found[2]) as client:
            answers = []
            for done in range(3):
                if done:
                    await train(client, done)
                answers.append(await greedy(client))
                _, as_sampled, as_trained = await probe(client)
                assert as_sampled == pytest.approx(as_trained, abs=SAME)
            logprobs = [found for _, found in answers]
            assert logprobs[0] != pytest.approx(logprobs[1], abs=20 * SAME)
            assert logprobs[1] != pytest.approx(logprobs[2], abs=20 * SAME)
            pin = "Pin, checkpointRef: {name: tiny-000001}, onPin: Pause"
            (manifests / "head.yaml").write_text(HEAD.replace("MODE", pin))
            await running.says("CheckpointHead tiny: Pinned: pinned to tiny-000001")
            tokens, logprobs_again = await greedy(client)
            assert tokens == answers[1][0]
            assert logprobs_again == pytest.approx(answers[1][1], abs=SAME)
    assert running.process.returncode == 0
