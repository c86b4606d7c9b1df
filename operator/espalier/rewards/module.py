"""A user's Python module: what can be said of it unseen, and its call.

Nothing of it runs in the runner, nor in the scoring worker: only in a process which has no network,
no token and of the file system no more than Python's own modules.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from types import CodeType, ModuleType
from typing import Any

NAME = "espalier_user_module"
# What a reward is called with.
ARGUMENTS = ("prompt", "completion", "answer", "task")
# Of the standard library; loaded before a kernel without Landlock keeps every file from being read.
_COMMON = (
    "ast", "collections", "dataclasses", "datetime", "decimal", "difflib", "fractions", "functools",
    "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "textwrap",
    "typing", "unicodedata",
)  # fmt: skip


class ModuleError(ValueError):
    """The module cannot be used; the message says why."""


def load_common() -> None:
    """Loads the standard library's modules that users' modules mostly want."""
    for name in _COMMON:
        import_module(name)


def check(source: str, function: str, arguments: Sequence[str] = ARGUMENTS) -> None:
    """Refuses a module without running it.

    Raises:
        ModuleError: it is no Python, or has no such function of these arguments.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModuleError(f"is no Python: {error or type(error).__name__}") from error
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == function:
            raise ModuleError(f"has {function} as an async function: write def {function}")
        if isinstance(node, ast.FunctionDef) and node.name == function:
            _check_arguments(node, arguments)
            return
    raise ModuleError(f"has no function {function} at its top level")


def _check_arguments(node: ast.FunctionDef, arguments: Sequence[str]) -> None:
    given = node.args
    named = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    required = len(named) - len(given.defaults)
    enough = required <= len(arguments) <= (len(named) if given.vararg is None else 1 << 16)
    needs_more = any(default is None for default in given.kw_defaults)
    if not enough or needs_more:
        wanted = f"def {node.name}({', '.join(arguments)})"
        raise ModuleError(f"has {node.name}({', '.join(named)}), which must be {wanted}")


def compiled(source: str, file: str = f"{NAME}.py") -> CodeType:
    """Its code, which tracebacks say is in ``file``; nothing of it runs."""
    return compile(source, file, "exec", dont_inherit=True)


def loaded(code: CodeType) -> ModuleType:
    """The module, after it has run."""
    module = ModuleType(NAME)
    # Dataclasses and pickles look their module up by its name.
    sys.modules[NAME] = module
    exec(code, module.__dict__)
    return module


def call(code: CodeType, function: str, asked: dict[str, Any], completion: str) -> Any:
    """Runs the module anew and its function; whatever it returns or raises.

    Args:
        code: of the module.
        function: its name.
        asked: ``id``, ``index``, ``messages`` and ``answer`` of the task.
        completion: what the model wrote.
    """
    module = loaded(code)
    task = {name: asked[name] for name in ("id", "index", "messages")}
    prompt = asked["messages"][-1]["content"] if asked["messages"] else ""
    return vars(module)[function](prompt, completion, asked["answer"], task)
