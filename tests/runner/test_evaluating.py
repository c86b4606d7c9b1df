"""Datasets that evaluate the answer: which they are, and that none does here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from espalier.api.run.taskset import Taskset
from espalier.runner.open_taskset import open_tasks
from espalier.runner.run_end import UserError
from espalier.runner.scoring import seccomp
from espalier.runner.scoring.process import COMMAND
from espalier.runner.scoring.scorer import Scorer
from espalier.runner.scoring.scorers import EVALUATING
from espalier.runner.scoring.strict import NotAFormulaError, screen
from espalier.runner.task_protocol import Score

# Modules that evaluate text, but none that a model wrote: their own tasks and right answers.
OWN_TEXT = {
    "algorithmic/number_sorting.py",
    "arithmetic/basic_arithmetic.py",
    "arithmetic/bitwise_arithmetic.py",
    "arithmetic/gsm_symbolic/generators_00_49.py",
    "arithmetic/gsm_symbolic/generators_50_99.py",
    "code/codeio.py",
    # A parser of its own that has the name of sympy's.
    "logic/propositional_logic.py",
}
_EVALUATES = re.compile(
    r"(?<![\w.])(?:eval|exec|__import__|sympify|lambdify|parse_latex)\("
    r"|\b(?:sympy|sp)\.(?:S|N|sympify|parse_expr|lambdify)\(|(?<!def )(?<!\w)parse_expr\("
    r"|\bpickle\b|\bsubprocess\b|\bos\.(?:system|popen|exec)"
)

# Every dataset is asked with an answer that names MARK; one that compiles it has evaluated it.
_COMPILES = r"""
import json, sys
from reasoning_gym.factory import DATASETS, create_dataset
from espalier.runner.scoring import strict
MARK = "mark_of_the_model"
seen = set()
now = ""
def hook(event, arguments):
    if event == "exec" and MARK in str((arguments[0].co_names, arguments[0].co_consts)):
        seen.add(now)
sys.addaudithook(hook)
if sys.argv[1] == "strict":
    strict.install()
print(file=sys.stderr)
for now in sorted(DATASETS):
    if now == "composite":
        continue
    dataset = create_dataset(now, seed=3, size=3)
    entry = dataset[1]
    right = str(entry["answer"])
    for answer in (MARK, f"[{MARK}]", f"[[{MARK}]]", f"1 + {MARK}", f"{right} + {MARK}"):
        try:
            dataset.score_answer(answer=answer, entry=entry)
        except Exception:
            pass
print("\n" + json.dumps(sorted(seen)))
"""


def compiled(how: str) -> set[str]:
    """Names of the datasets that compile what was answered, of all that there are."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _COMPILES, how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_list_is_that_of_the_datasets_that_evaluate_the_answer() -> None:
    assert compiled("as it is") == EVALUATING


def test_with_our_readers_only_formulas_are_evaluated() -> None:
    # sympy evaluates Symbol('mark_of_the_model'), which names something and runs nothing.
    lists = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
    assert compiled("strict") == EVALUATING - lists


def test_no_module_of_the_package_evaluates_text_unseen() -> None:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    package = Path(reasoning_gym.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "contrib" not in path.parts and _EVALUATES.search(path.read_text())
    }
    modules = {DATASETS[name][0].__module__ for name in EVALUATING}
    known = {module.removeprefix("reasoning_gym.").replace(".", "/") + ".py" for module in modules}
    assert found == known | OWN_TEXT


HOSTILE = {
    "a program": "__import__('os').system('touch {target}')",
    "a list with a program": "[__import__('os').system('touch {target}')]",
    "a file": "[open('{target}', 'w').write('x')]",
    "by sympy": "sympify(\"__import__('os').system('touch {target}')\")",
    "by an attribute": "().__class__.__base__.__subclasses__()",
    "by a lambda": "(lambda: __import__('os').system('touch {target}'))()",
    "the end": "exit()",
    "another end": "__import__('os')._exit(0)",
    "a list with an end": "[exit()]",
    "the scorer": "[__import__('reasoning_gym').__dict__.clear()]",
    "a walrus": "[x := 5 for _ in iter(int, 1)]",
    "memory": "[0] * 10**10",
    "nothing": "",
    "brackets": "[" * 5000,
    "parentheses": "(" * 5000 + ")" * 5000,
}
SLOW = ("9**9**9**9", "factorial(10**9)", "(x+1)**(10**7)")

Open = Callable[..., Awaitable[Scorer]]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens the scorer of a dataset with its real worker; closes it."""
    scorers: list[Scorer] = []

    async def make(dataset: str, command: Sequence[str] = COMMAND) -> Scorer:
        source = {"dataset": dataset}
        spec = Taskset.model_validate(
            {"seed": 1, "size": 4, "scoreTimeoutSeconds": 4, "reasoningGym": source}
        )
        tasks = await asyncio.to_thread(open_tasks, spec)
        scorers.append(Scorer(spec, tasks, command=command))
        return scorers[-1]

    yield make
    for scorer in scorers:
        await scorer.close()


def right(dataset: str) -> str:
    """The right answer of the second task."""
    from reasoning_gym.factory import create_dataset

    return str(create_dataset(dataset, seed=1, size=4)[1]["answer"])


# By a formula, by a list, and by what sympy makes of it. The others do the same elsewhere.
SAMPLE = {"countdown", "spiral_matrix", "simple_integration"}
# One needs PYTHONHASHSEED=0 in the runner, which this process cannot have.
REST = EVALUATING - SAMPLE - {"polynomial_multiplication"}


@pytest.mark.parametrize(
    "dataset",
    [*sorted(SAMPLE), *(pytest.param(n, marks=pytest.mark.exhaustive) for n in sorted(REST))],
)
@pytest.mark.skipif(not seccomp.supported(), reason="this kernel has no seccomp filters")
async def test_hostile_answers_earn_next_to_nothing_and_the_right_one_all(
    opened: Open, tmp_path: Path, dataset: str
) -> None:
    scorer, target = await opened(dataset), tmp_path / "made"

    async def score(answer: str) -> Score:
        return await scorer.score(1, f"<answer>{answer}</answer>")

    answers = [*(text.format(target=target) for text in HOSTILE.values()), *SLOW]
    scores = await asyncio.gather(*map(score, answers))
    for answer, one in zip(answers, scores, strict=True):
        assert one.reward is None or one.reward <= 0.05, (answer, one)
    for answer, one in zip(answers, scores, strict=True):
        allowed = {"Timeout", "Memory"} if answer in SLOW else {"Memory", "Raised", "Died"}
        assert one.failure is None or one.failure.cause in allowed, (answer, one)
    assert not await asyncio.to_thread(target.exists)
    assert await score(right(dataset)) == Score(1.0)


@pytest.mark.parametrize("dataset", ["countdown", "intermediate_integration", "simple_integration"])
@pytest.mark.skipif(not seccomp.supported(), reason="this kernel has no seccomp filters")
async def test_where_no_file_can_be_opened_right_answers_are_still_known(
    opened: Open, dataset: str
) -> None:
    # A kernel without Landlock. sympy imports much of itself at its first use.
    command = (sys.executable, "-P", "-W", "ignore", "-m", "tests.runner.hostile")
    scorer = await opened(dataset, (*command, "dataset", "seccomp"))
    assert (await scorer.ready()).landlock == 0
    answer = f"<answer>{right(dataset)}</answer>"
    assert await scorer.score(1, answer) == Score(1.0)


async def test_without_seccomp_only_what_evaluates_nothing_is_scored(opened: Open) -> None:
    command = (sys.executable, "-P", "-W", "ignore", "-m", "tests.runner.hostile")
    layers = ("dataset", "landlock")
    with pytest.raises(UserError, match=r"ScoringUnconfined: .*spiral_matrix.*seccomp"):
        await (await opened("spiral_matrix", (*command, *layers))).score(1, "<answer>1</answer>")
    scorer = await opened("chain_sum", (*command, *layers))
    assert await scorer.score(1, f"<answer>{right('chain_sum')}</answer>") == Score(1.0)


@pytest.mark.parametrize("text", ["[1, 2]", "['a', 'b']"])
async def test_a_list_is_still_read_where_the_dataset_takes_one(opened: Open, text: str) -> None:
    answer = right("spiral_matrix")
    given = str([int(one) for one in answer.split()])
    scorer = await opened("spiral_matrix")
    assert await scorer.score(1, f"<answer>{given}</answer>") == Score(0.1)
    assert await scorer.score(1, f"<answer>{text}</answer>") == Score(0.0)


@pytest.mark.parametrize(
    "code",
    [
        "Integer (2 )*Symbol ('x' )**Integer (3 )/Integer (3 )+Symbol ('C' )",
        "sqrt (Integer (2 ))*exp (-Symbol ('x' ))+pi ",
        "-Float ('2.5' )+x ",
        "factorial (Integer (4 ))",
    ],
)
def test_formulas_reach_sympy(code: str) -> None:
    screen(code, frozenset({"x"}))


@pytest.mark.parametrize(
    "code",
    [
        "__import__ ('os' )",
        "exit ()",
        "Symbol .__class__",
        "sympify ('exit()' )",
        "sin (x =1 )",
        "sin (*x )",
        "sin ('exit()' )",
        "lambdify (Symbol ('x' ),'exit()' )",
        "(lambda :1 )()",
        "[exit ()for _ in x ]",
        "x [0 ]",
        "sqrt (2 )(3 )",
        "(y :=1 )",
        "f'{exit()}'",
        "y ",
        "'text'",
        "1 if x else 2 ",
        "",
        "1 ;2 ",
        "(" * 10000,
    ],
)
def test_anything_else_does_not(code: str) -> None:
    with pytest.raises(NotAFormulaError):
        screen(code, frozenset({"x"}))
