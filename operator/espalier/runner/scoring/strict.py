"""Readers in the place of those of reasoning-gym and sympy that evaluate an answer as Python.

The walls around a scorer do not keep an answer that runs as code from paying itself: it could
change the scorer that it runs in. So it is not run: lists are read as literals, and of a formula
only numbers, symbols, arithmetic and known functions reach sympy. What is refused is for the
dataset an answer that it cannot read.
"""

from __future__ import annotations

import ast
import re
from importlib import import_module
from typing import Any

# Datasets that accept a Python list where text was asked for, with the modules that do.
_LISTS = (
    "reasoning_gym.algorithmic.binary_matrix",
    "reasoning_gym.algorithmic.spiral_matrix",
    "reasoning_gym.algorithmic.string_insertion",
    "reasoning_gym.games.n_queens",
)
_PARSER = "sympy.parsing.sympy_parser"

# As one text: a list of this length would be a page of quotes.
_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        "sqrt cbrt root exp log ln sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh "
        "tanh coth asinh acosh atanh Abs sign erf erfc erfi gamma factorial Ei Si Ci li "
        "Add Mul Pow Max Min Rational Integer Float Symbol",
    )
)
_CONSTANTS = frozenset(("pi", "E", "I"))
# What sympy writes around the numbers and names of a formula.
_OF_TEXT = frozenset(("Integer", "Float", "Rational", "Symbol"))
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)


class NotAFormulaError(ValueError):
    """The text holds more than arithmetic."""


def install() -> None:
    """Replaces the readers in this process, whichever of them are loaded."""
    for name in _LISTS:
        # A module's own name goes before the built-in one.
        vars(import_module(name))["eval"] = ast.literal_eval
    parser = import_module(_PARSER)
    evaluate = parser.eval_expr

    def screened(code: object, local_dict: dict[Any, Any], global_dict: dict[Any, Any]) -> Any:
        if not isinstance(code, str):
            raise NotAFormulaError("only text is read")
        screen(code, frozenset(name for name in local_dict if isinstance(name, str)))
        return evaluate(code, local_dict, global_dict)

    vars(parser)["eval_expr"] = screened


def screen(code: str, local: frozenset[str] = frozenset()) -> None:
    """Refuses code that is no formula.

    Args:
        code: what sympy made of an answer, and would evaluate.
        local: names that the dataset gives a meaning.

    Raises:
        NotAFormulaError: it holds something else than arithmetic, or cannot be parsed.
    """
    try:
        _check(ast.parse(code.strip(), mode="eval").body, local)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise NotAFormulaError("it cannot be parsed") from error


def _check(node: ast.expr, local: frozenset[str]) -> None:
    match node:
        case ast.Constant(value=int() | float()):
            return None
        case ast.Name(id=name) if name in _CONSTANTS or name in local:
            return None
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _check(operand, local)
        case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _OPERATORS):
            _check(left, local)
            return _check(right, local)
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]) if name in _FUNCTIONS:
            for argument in given:
                if name in _OF_TEXT and _is_text(argument):
                    continue
                _check(argument, local)
            return None
    raise NotAFormulaError(f"{type(node).__name__} has no place in a formula")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
