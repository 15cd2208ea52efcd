"""The shape that a JSON document should have, and in words what is wrong with one that differs.

A shape is a type or several; a dict of the names that an object must hold (with a question mark:
may hold), others are let through; a list of one shape, which all elements have; or ``Every``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBER = (int, float)
TEXT = (str, type(None))  # or null
NAMES = {str: "a text", dict: "an object", list: "a list", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class Every:
    """An object with any names, each value of one shape."""

    shape: Any


def read(path: Path) -> Any:
    """The JSON in a file; ``ValueError`` names the file that holds none."""
    try:
        return json.loads(path.read_text())
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not JSON, it holds bytes that are no text") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON, {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON that is of use here, it is too deep") from None


def read_as(path: Path, shape: Any) -> Any:
    """The same of that shape; ``ValueError`` names the file, what is wrong with it, and where."""
    document = read(path)
    if problem := wrong(document, shape):
        raise ValueError(f"{path}: {problem}")
    return document


def wrong(value: Any, shape: Any, at: str = "") -> str | None:
    """The first thing that differs from ``shape``, and where; None if nothing does."""
    if isinstance(shape, Every):
        return _wrong_type(value, dict, at) or _first(value, dict.fromkeys(value, shape.shape), at)
    if isinstance(shape, dict):
        return _wrong_type(value, dict, at) or _wrong_object(value, shape, at)
    if isinstance(shape, list):
        if problem := _wrong_type(value, list, at):
            return problem
        numbered = dict(enumerate(value))
        return _first(numbered, dict.fromkeys(numbered, shape[0]), at)
    return _wrong_type(value, shape, at)


def _wrong_object(value: Mapping[str, Any], shape: Mapping[str, Any], at: str) -> str | None:
    absent = [name for name in shape if not name.endswith("?") and name not in value]
    if absent:
        return f"{at or 'it'} has no {absent[0]!r}"
    wanted = {name.removesuffix("?"): each for name, each in shape.items()}
    return _first(value, {name: each for name, each in wanted.items() if name in value}, at)


def _first(value: Mapping[Any, Any], shapes: Mapping[Any, Any], at: str) -> str | None:
    problems = (wrong(value[name], shape, _inside(at, name)) for name, shape in shapes.items())
    return next((problem for problem in problems if problem), None)


def _inside(at: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{at}[{name}]"
    return f"{at}.{name}" if at else name


def _wrong_type(value: Any, kinds: Any, at: str) -> str | None:
    if isinstance(value, kinds) and not (isinstance(value, bool) and kinds in (int, NUMBER)):
        return None
    some = kinds if isinstance(kinds, tuple) else (kinds,)
    wanted = (
        "a number" if kinds == NUMBER else " or ".join(NAMES.get(kind, "null") for kind in some)
    )
    return f"{at or 'it'} is not {wanted}"
