"""Answers that do their worst, in the real worker: what they reach, and what becomes of others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from espalier.api.run.taskset import Taskset
from espalier.runner.run_end import WaitError
from espalier.runner.scorer_spec import Match
from espalier.runner.scoring import seccomp
from espalier.runner.scoring.process import Patience
from espalier.runner.scoring.scorer import Scorer
from espalier.runner.task_protocol import Score, Task

GOOD = "reward = 1.0"
SECRET = "token-of-the-runner"

pytestmark = pytest.mark.skipif(
    not seccomp.supported(), reason="this kernel has no seccomp filters"
)


class Anything:
    """Tasks for which every answer is sent as it is."""

    size = 1_000_000
    scorer = Match(extraction="Whole")

    def task(self, index: int) -> Task:
        raise NotImplementedError

    def reference(self, index: int) -> int:
        return index

    def answer(self, index: int) -> None:
        return None


Open = Callable[..., Awaitable[Scorer]]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens scorers whose worker executes answers; closes them."""
    scorers: list[Scorer] = []

    async def make(how: str = "alone", layers: str = "all", *, seconds: int = 5) -> Scorer:
        spec = Taskset.model_validate({"seed": 1, "scoreTimeoutSeconds": seconds})
        command = (sys.executable, "-P", "-m", "tests.runner.hostile", how, layers)
        scorers.append(Scorer(spec, Anything(), command=command, memory_bytes=256 << 20))
        await scorers[-1].ready()
        return scorers[-1]

    yield make
    for scorer in scorers:
        await scorer.close()


def attempt(action: str) -> str:
    """Code whose reward is 1 where the action succeeds, and 0 where the kernel refuses it."""
    body = textwrap.indent(textwrap.dedent(action).strip(), "    ")
    return f"reward = 1.0\ntry:\n{body}\nexcept OSError:\n    reward = 0.0\n"


READS = {
    "the token": "open({token!r}).read()",
    "the account of the cluster": "open('/etc/passwd').read()",
    "the environment of the runner": "open('/proc/{runner}/environ').read()",
    "the memory of the runner": "open('/proc/{runner}/mem', 'rb').read(1)",
    "the files of the runner": "__import__('os').listdir('/proc/{runner}/fd')",
    "the directory of a person": "__import__('os').listdir({home!r})",
}
WRITES = {
    "a file": "open({target!r}, 'w').write('x')",
    "the token": "open({token!r}, 'a').write('x')",
    "a directory": "__import__('os').mkdir({target!r})",
    "a link": "__import__('os').symlink('/etc/passwd', {target!r})",
    "a deletion": "__import__('os').unlink({token!r})",
    "a file of ours": "open(__import__('espalier').__file__, 'a').write('#')",
}
ACTIONS = {
    "a socket": "__import__('socket').socket()",
    "a connection": "__import__('socket').create_connection(('127.0.0.1', {port}))",
    "a local socket": "__import__('socket').socket(__import__('socket').AF_UNIX)",
    "a fork": "__import__('os').fork() or __import__('os')._exit(0)",
    "a program": "__import__('subprocess').run(['/bin/true'])",
    "itself replaced": "__import__('os').execv('/bin/true', ['true'])",
    "a signal to the runner": "__import__('os').kill({runner}, 0)",
    "a signal to the worker": "__import__('os').kill(__import__('os').getppid(), 9)",
    "a group of its own": "__import__('os').setpgid(0, 0)",
    "higher limits": """
        import resource
        resource.prlimit({runner}, resource.RLIMIT_NOFILE)
    """,
    "shared memory": "__import__('os').memfd_create('x')",
    "the protocol": "[__import__('os').write(n, b'x') for n in range(4, 64)]",
}


@pytest.fixture
def facts(tmp_path: Path) -> dict[str, object]:
    token = tmp_path / "token"
    token.write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return {
        "token": str(token),
        "target": str(tmp_path / "made"),
        "home": str(Path.home()),
        "runner": os.getpid(),
        "port": port,
    }


@pytest.mark.parametrize("layers", ["all", "seccomp", "landlock"])
async def test_an_answer_reads_nothing_but_python(
    opened: Open, facts: dict[str, object], layers: str
) -> None:
    scorer = await opened(layers=layers)
    for name, action in READS.items():
        score = await scorer.score(0, attempt(action.format(**facts)))
        assert score == Score(0.0), (name, score)


@pytest.mark.parametrize("layers", ["all", "seccomp", "landlock"])
async def test_an_answer_writes_nothing(
    opened: Open, facts: dict[str, object], layers: str
) -> None:
    scorer = await opened(layers=layers)
    for name, action in WRITES.items():
        score = await scorer.score(0, attempt(action.format(**facts)))
        assert score == Score(0.0), (name, score)
    await asyncio.to_thread(unchanged, facts)


def unchanged(facts: dict[str, object]) -> None:
    assert not Path(str(facts["target"])).exists()
    assert Path(str(facts["token"])).read_text() == SECRET


async def test_an_answer_starts_nothing_and_reaches_nobody(
    opened: Open, facts: dict[str, object]
) -> None:
    scorer = await opened()
    for name, action in ACTIONS.items():
        score = await scorer.score(0, attempt(action.format(**facts)))
        assert score == Score(0.0), (name, score)


@pytest.mark.parametrize("action", [READS["the token"], WRITES["a file"], ACTIONS["a socket"]])
def test_the_same_actions_succeed_outside_of_the_worker(
    facts: dict[str, object], action: str
) -> None:
    names: dict[str, object] = {}
    exec(attempt(action.format(**facts)), names)
    assert names["reward"] == 1.0


async def test_a_thread_is_refused(opened: Open) -> None:
    score = await (await opened()).score(0, "import threading\nthreading.Thread().start()")
    assert score.failure is not None
    assert score.failure.cause == "Raised"
    assert "can't start new thread" in score.failure.detail


async def test_the_environment_has_nothing_of_the_runner(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_TOKEN", SECRET)
    scorer = await opened()
    look = f"import os\nreward = float({SECRET!r} in str(os.environb))"
    assert await scorer.score(0, look) == Score(0.0)
    names = "import os\nraise Exception(sorted(os.environ))"
    failure = (await scorer.score(0, names)).failure
    assert failure is not None
    assert "PYTHONPATH" in failure.detail
    assert "ESPALIER" not in failure.detail


async def test_python_s_own_modules_are_still_found(opened: Open) -> None:
    scorer = await opened()
    late = "import sys\nassert 'colorsys' not in sys.modules\nimport colorsys, sympy\nreward = 1"
    assert await scorer.score(0, late) == Score(1.0)


async def test_without_landlock_no_file_is_opened_at_all(opened: Open) -> None:
    scorer = await opened(layers="seccomp")
    failure = (await scorer.score(0, "import colorsys")).failure
    assert failure is not None
    assert failure.cause == "Raised"


ENDS = {
    "raise ValueError('no')": ("Raised", "ValueError: no"),
    "exit()": ("Raised", "SystemExit"),
    "raise KeyboardInterrupt": ("Raised", "KeyboardInterrupt"),
    "import os; os._exit(0)": ("Died", "code 0"),
    "import ctypes; ctypes.string_at(0)": ("Died", "SIGSEGV"),
    # With its only file closed it cannot say why.
    "import os; os.close(3)": ("Died", "its process"),
    "while True: pass": ("Timeout", "within 5 s"),
    "9**9**9**9": ("Timeout", "within 5 s"),
    "import time; time.sleep(1000)": ("Timeout", "within 5 s"),
    "import signal\nfor n in range(1, 64):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    "while True: pass": ("Timeout", "within 5 s"),
    "[0] * 10**9": ("Memory", "more memory"),
    "x = []\nwhile True: x.append(bytearray(1 << 20))": ("Memory", "more memory"),
    "reward = float('nan')": ("NotFinite", "nan"),
    "reward = float('inf')": ("NotFinite", "inf"),
    "reward = 7.0": ("OutOfRange", "from 0 to 1"),
    "reward = -1.0": ("OutOfRange", "from 0 to 1"),
    "reward = 10 ** 5000": ("Raised", "too large"),
    "reward = 'high'": ("Malformed", "no number, but a str"),
    "reward = None": ("Malformed", "a NoneType"),
    "reward = True": ("Malformed", "a bool"),
    "reward = '1.0'": ("Malformed", "a str"),
    "import os; os.write(3, b'garbage\\n'); os._exit(0)": ("Malformed", "something else"),
    "import os; os.write(3, b'[' * 100000 + b'\\n')": ("Malformed", "something else"),
    "import os\nwhile True: os.write(3, b'x' * 60000)": ("Malformed", "too much"),
    "class E(Exception):\n  def __str__(self): exit()\nraise E": ("Raised", "cannot be printed"),
    "raise Exception('\\x1b[31m\\n' + 'x' * 10000)": ("Raised", "Exception: "),
}


async def test_an_answer_that_gives_no_reward_is_an_error_with_its_cause(opened: Open) -> None:
    scorer = await opened()
    scores = await asyncio.gather(*(scorer.score(n, code) for n, code in enumerate(ENDS)))
    for (code, (cause, detail)), score in zip(ENDS.items(), scores, strict=True):
        assert score.reward is None, code
        assert score.failure is not None, code
        assert score.failure.cause == cause, (code, score)
        assert detail in score.failure.detail, (code, score)
        assert score.failure.detail.isprintable(), code
        assert len(score.failure.detail) <= 200, code


async def test_one_answer_cannot_change_what_the_next_one_is_scored_by(opened: Open) -> None:
    scorer = await opened("alone")
    poison = "state['poisoned'] = True\nimport builtins\nbuiltins.float = lambda x: 1.0\nreward = 1"
    assert await scorer.score(0, poison) == Score(1.0)
    assert await scorer.score(0, "reward = float(state['poisoned'])") == Score(0.0)


async def test_an_answer_cannot_answer_for_others(opened: Open) -> None:
    scorer = await opened("alone")
    forged = "import os\nfor n in range(99): os.write(3, b'{\"reward\": 1.0}\\n')\nreward = 0"
    wait = "import time\ntime.sleep(0.5)\nreward = 0.25"
    other, forger, last = await asyncio.gather(
        scorer.score(0, wait), scorer.score(1, forged), scorer.score(2, wait)
    )
    assert (other, last) == (Score(0.25), Score(0.25))
    assert forger == Score(1.0)


@pytest.mark.parametrize("how", ["alone", "batch"])
async def test_those_beside_and_behind_an_answer_that_dies_or_hangs_are_scored(
    opened: Open, how: str
) -> None:
    scorer = await opened(how, seconds=3)
    bad = ["import os; os._exit(1)", "while True: pass", "raise ValueError"]
    codes = [bad[n // 10] if n % 10 == 5 and n < 30 else GOOD for n in range(100)]
    scores = await asyncio.gather(*(scorer.score(n, code) for n, code in enumerate(codes)))
    causes = [score.failure.cause for score in scores if score.failure is not None]
    assert sorted(causes) == ["Died", "Raised", "Timeout"]
    assert [n for n, score in enumerate(scores) if score != Score(1.0)] == [5, 15, 25]


async def test_the_time_is_that_of_one_score_and_not_of_its_batch(opened: Open) -> None:
    scorer = await opened("batch", seconds=2)
    slow = "import time; time.sleep(0.4); reward = 1"
    scores = await asyncio.gather(*(scorer.score(n, slow) for n in range(8)))
    assert scores == [Score(1.0)] * 8


async def test_the_loop_goes_on_while_an_answer_hangs(opened: Open) -> None:
    scorer = await opened(seconds=2)
    hanging = asyncio.ensure_future(scorer.score(0, "while True: pass"))
    turns = 0
    while not hanging.done():
        await asyncio.sleep(0.01)
        turns += 1
    # A loop that is held up has no turn in the two seconds.
    assert turns > 3


async def test_a_worker_that_was_killed_is_started_anew(opened: Open) -> None:
    scorer = await opened()
    assert await scorer.score(0, GOOD) == Score(1.0)
    first = workers()
    os.kill(first[0], signal.SIGKILL)
    assert await scorer.score(0, GOOD) == Score(1.0)
    assert workers() != first


@pytest.mark.parametrize(
    ("command", "patience", "why"),
    [
        (("/bin/false",), Patience(), "ended before it was ready, code 1"),
        (("/bin/sleep", "60"), Patience(start=0.2), "was not ready within 0 s"),
    ],
)
async def test_a_worker_that_does_not_start_is_a_wait_with_an_end(
    command: tuple[str, ...], patience: Patience, why: str
) -> None:
    spec = Taskset.model_validate({"seed": 1})
    async with Scorer(spec, Anything(), command=command, patience=patience) as scorer:
        with pytest.raises(WaitError, match=f"ScorerNotReady: .*{why}"):
            await scorer.score(0, GOOD)


async def test_a_worker_that_falls_silent_is_ended_and_another_one_answers() -> None:
    spec = Taskset.model_validate({"seed": 1, "scoreTimeoutSeconds": 3})
    command = (sys.executable, "-P", "-m", "tests.runner.hostile", "alone", "all")
    patience = Patience(silence=1.0)
    async with Scorer(spec, Anything(), command=command, patience=patience) as scorer:
        await scorer.ready()
        stopped = workers()[0]
        os.kill(stopped, signal.SIGSTOP)
        asked = asyncio.ensure_future(scorer.score(0, GOOD))
        assert await asked == Score(1.0)
        assert stopped not in workers()


async def test_closing_leaves_no_process_behind(opened: Open) -> None:
    scorer = await opened(seconds=600)
    hanging = asyncio.ensure_future(scorer.score(0, "while True: pass"))
    await asyncio.to_thread(wait, lambda: len(workers()) == 2)
    await scorer.close()
    # It asked for another worker when its own went.
    with pytest.raises(RuntimeError, match="the scorer is closed"):
        await hanging
    assert not workers()


def test_children_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from tests.runner.test_confinement import Anything
        from espalier.api.run.taskset import Taskset
        from espalier.runner.scoring.scorer import Scorer
        async def main():
            spec = Taskset.model_validate({"seed": 1, "scoreTimeoutSeconds": 600})
            command = (sys.executable, "-P", "-m", "tests.runner.hostile", "alone", "all")
            await Scorer(spec, Anything(), command=command).score(0, "while True: pass")
        asyncio.run(main())
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runner = subprocess.Popen([sys.executable, "-c", program], env=environment)
    try:
        wait(lambda: len(workers(runner.pid)) == 2)
        started = workers(runner.pid)
    finally:
        runner.kill()
        runner.wait()
    wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def workers(parent: int | None = None) -> list[int]:
    """Processes below one that are workers or their children, parents first."""
    found: list[int] = []
    # A thread or a process may end between being listed and being read: it has no children.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{parent or os.getpid()}/task").iterdir():
            for pid in map(int, proc_file(task / "children").split()):
                if b"tests.runner.hostile" in proc_file(Path(f"/proc/{pid}/cmdline")):
                    found += [pid, *workers(pid)]
    return found


def proc_file(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return path.read_bytes()
    return b""


def wait(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
