"""Checks of arguments and configurations by type and range."""

from __future__ import annotations

import functools
import operator
import os
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seeds that NumPy, torch and scikit-learn accept."""

BOUNDS = {"> 0": Field(gt=0), ">= 0": Field(ge=0), "< 1": Field(lt=1), "<= 1": Field(le=1)}
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
REASONS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be True or False",
    "string_type": "must be text",
    "finite_number": "must be finite",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be one of {expected}",
}


def check(name: str, value: Any, hint: Any) -> Any:
    """Return a value as a plain Python object if it has the type ``hint`` and is in its range."""
    if is_dataclass(hint):  # checks its own fields
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        raise ValueError(f"{name}={value!r} must be of type {_type_name(hint)}.")
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, os.PathLike) and hint is str:
        plain = os.fspath(plain)
    if isinstance(plain, list) and typing.get_origin(hint) is tuple:
        plain = tuple(plain)
    try:
        return _adapter(hint).validate_python(plain)
    except ValidationError as error:
        raise ValueError(f"{name}={value!r} {_reason(error, hint)}.") from None


class Validated:
    """A dataclass whose fields are checked against their annotations on creation."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in fields(self):  # type: ignore[arg-type]
            value = check(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)


@functools.lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_bounded(hint), config=STRICT)


def _bounded(hint: Any) -> Any:
    """Turn bounds that are written out, as in ``nn.ranges``, into those of pydantic."""
    arguments = tuple(map(_bounded, typing.get_args(hint)))
    if typing.get_origin(hint) is Annotated:
        return Annotated[(arguments[0], *(BOUNDS.get(a, a) for a in hint.__metadata__))]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return functools.reduce(operator.or_, arguments)
    if (origin := typing.get_origin(hint)) is tuple:
        return origin[arguments]
    return hint


def _reason(error: ValidationError, hint: Any) -> str:
    problems = error.errors()
    first = problems[0]
    context = first.get("ctx", {})
    if len(problems) > 1 or first["type"] not in REASONS:
        return f"must be of type {_type_name(hint)}"
    if context.get("gt") == 0:
        return "must be positive"
    if context.get("ge") == 0:
        return "must not be negative"
    if first["type"] != "literal_error":
        context = {key: f"{number:g}" for key, number in context.items()}
    return REASONS[first["type"]].format(**context)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        return _type_name(typing.get_args(hint)[0])
    if arguments := typing.get_args(hint):
        parts = ", ".join(_type_name(argument) for argument in arguments)
        return f"{getattr(typing.get_origin(hint), '__name__', 'any')} of {parts}"
    return getattr(hint, "__name__", str(hint))
