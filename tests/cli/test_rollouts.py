"""How a rollout is printed."""

from __future__ import annotations

import pytest

from espalier.cli.checkpoint_commands import described_rollout


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"reward": 1.0, "completion": "7"}, '+1.000  3 + 4\n        "7"'),
        (
            {"reward": None, "completion": "9**9", "trained": False},
            '  none  3 + 4\n        "9**9"  not trained',
        ),
        (
            {
                **{"reward": 0.0, "completion": "7", "stop_reason": "timeout", "trained": False},
                **{"error": "out of time", "metadata": {"seed": 7}},
            },
            '+0.000  3 + 4\n        "7"  not trained\n        stopped: timeout\n'
            '        error: out of time\n        metadata: {"seed": 7}',
        ),
        ({"reward": 1.0, "prompt": "3 + 4", "completion": "7"}, '+1.000  3 + 4\n        "7"'),
    ],
)
def test_a_rollout_shows_its_reward_or_that_it_has_none(row: dict[str, object], shown: str) -> None:
    asked = {"prompt": [{"role": "user", "content": "3 + 4"}]}
    assert described_rollout({**asked, **row}) == shown
