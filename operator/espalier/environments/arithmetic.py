"""Evaluates expressions that a model wrote: exact, bounded, and nothing but arithmetic. Pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction

MOST_CHARACTERS = 200
_ALLOWED = re.compile(r"[0-9+\-*/(). ]+")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}


class ExpressionError(ValueError):
    """It cannot be evaluated; the message is for the model."""


def evaluate(text: str) -> Fraction:
    """The value of sums, products and quotients of decimal numbers.

    The text is parsed and never run. Its length bounds the time, the depth and the digits of the
    value: there are no powers.

    Raises:
        ExpressionError: it is something else, too long, or divides by zero.
    """
    if len(text) > MOST_CHARACTERS:
        raise ExpressionError(f"longer than {MOST_CHARACTERS} characters")
    if not _ALLOWED.fullmatch(text):
        raise ExpressionError("only digits, + - * / . and brackets are known")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, text.strip())
    except ZeroDivisionError:
        raise ExpressionError("division by zero") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError("that is no expression") from None


def shown(value: Fraction) -> str:
    """An integer as it is, anything else with six decimal places."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6f}"


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.BinOp) and (operator := _OPERATORS.get(type(node.op))):
        return operator(_value(node.left, text), _value(node.right, text))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Constant):
        # From the text: a float would lose digits.
        return Fraction(text[node.col_offset : node.end_col_offset])
    raise ExpressionError("only + - * / of numbers are known")
