"""Which runs may count on where a lost one was."""

from __future__ import annotations

from tests.core.objects import line, run

from espalier.core.run.continued import CONTINUES, own, unknown

MADE = line("m", 2, run="arith")
OF_ARITH = {"annotations": {CONTINUES: "uid-arith"}}


def test_a_run_counts_on_from_one_of_its_own_name_that_made_checkpoints() -> None:
    arith = run("arith", meta=OF_ARITH)
    assert own(arith, MADE) == MADE
    assert unknown(arith, MADE) == ""
    assert "no Checkpoint of m is of a run arith of that uid" in unknown(arith, own(arith, []))


def test_steps_of_a_run_of_another_name_are_not_its_own() -> None:
    other = run("other", meta=OF_ARITH)
    assert not own(other, MADE)
    assert "no Checkpoint of m is of a run other of that uid" in unknown(other, own(other, MADE))
