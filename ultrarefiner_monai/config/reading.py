"""Plain values (YAML) -> frozen dataclasses and back; unknown keys, wrong types and impossible values by name.

pydantic reads and checks; its errors are said here in the words of who wrote the file.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration cannot be used; the message names the option."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_ranges(
    config: Any,
    group: str = "",
    shares: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    positive: Sequence[str] = (),
    at_least_one: Sequence[str] = (),
) -> None:
    """ConfigError for the first named option of ``config`` out of its range: shares lie in [0, 1]. None is no value."""
    rules: tuple[tuple[Sequence[str], Callable[[float], bool], str], ...] = (
        (shares, lambda v: 0 <= v <= 1, "must be in [0, 1]"),
        (not_negative, lambda v: v >= 0, "must not be negative"),
        (positive, lambda v: v > 0, "must be positive"),
        (at_least_one, lambda v: v >= 1, "must be at least 1"),
    )
    for names, holds, says in rules:
        for name in names:
            value = getattr(config, name)
            require(value is None or holds(value), f"{group}{'.' if group else ''}{name} {says}, got {value}")


def from_dict(cls: type[T], values: Any) -> T:
    """Build the dataclass ``cls`` from plain values; unknown keys and wrong types are refused with their full name."""
    from pydantic import ValidationError  # late: who only asks what options there are need not wait for it
    from pydantic_core import to_json

    try:
        # As JSON, for which "strict" means what it means in YAML: a list is a tuple and a mapping a dataclass, but no
        # number is a bool, no text a number.
        text = to_json(values, inf_nan_mode="constants")
        return _adapter(cls).validate_json(text, strict=True, extra="forbid")  # type: ignore[arg-type]
    except ValidationError as error:
        raise _in_words(cls, error.errors(include_url=False)) from error


@cache
def _adapter(cls: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _in_words(cls: type, errors: Sequence[Mapping[str, Any]]) -> ConfigError:
    """What pydantic found, said as the user wrote it: unknown options of one group all at once, else the first mistake."""
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    kind, loc, value = first["type"], first["loc"], first["input"]
    if kind == "value_error":  # of a __post_init__
        return ConfigError(str(first["ctx"]["error"]))
    if kind == "unexpected_keyword_argument":
        names = sorted(_name(e["loc"]) for e in errors if e["type"] == kind and e["loc"][:-1] == loc[:-1])
        known = sorted(f.name for f in dataclasses.fields(_hint_at(cls, loc[:-1])))
        return ConfigError(f"unknown option {', '.join(names)}; known here: {', '.join(known)}")
    if kind == "missing" and isinstance(loc[-1], str):
        return ConfigError(f"{_name(loc)}: the option is missing")
    if kind == "missing":  # one value of a list
        loc = loc[:-1]
    hint = _hint_at(cls, loc)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    came = repr(value)
    if dataclasses.is_dataclass(hint):
        expected, came = "a mapping of options", type(value).__name__
    elif origin is Literal:
        expected = f"one of {', '.join(map(repr, args))}"
    elif origin is tuple:
        expected = f"{len(args)} values" if isinstance(value, list) else "a list"
    else:
        expected = "a mapping" if origin is dict else hint.__name__
    return ConfigError(f"{_name(loc) or cls.__name__}: expected {expected}, got {came}")


def _name(loc: Sequence[str | int]) -> str:
    """("steps", 0, "by") -> steps[0].by"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _hint_at(hint: Any, loc: Sequence[str | int]) -> Any:
    """The type of the option at ``loc`` within ``hint``, without the None that may stand for it."""
    for part in loc:
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint)[str(part)]
        else:
            hint = typing.get_args(hint)[0 if typing.get_origin(hint) is tuple else 1]
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values (YAML and JSON safe) from which ``from_dict`` builds the same dataclass again."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}


def load_yaml(cls: type[T], path: str | Path, overrides: dict[str, Any] | None = None) -> T:
    """Read a YAML file (``read_yaml``) into ``cls``. ``overrides``: dotted names -> values, as given on the command line."""
    values = read_yaml(path)
    for name, value in (overrides or {}).items():
        set_option(values, name, value)
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


BASE = "base"  # the key of a YAML file that names another one


def read_yaml(path: str | Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """The options of a YAML file as plain values.

    ``base: OTHER.yaml`` (from the folder of the file that says so) stands for the options of that file: what the file says
    itself comes on top, mapping by mapping; any other value, a list too, takes the place of the base's. A base may have a
    base. above: the files that name this one. Raises ConfigError for a base that is not there, or a circle.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    if BASE not in values:
        return values
    name = values.pop(BASE)
    require(isinstance(name, str) and bool(name), f"{path}: {BASE}: expected the name of a YAML file, got {name!r}")
    base, above = path.parent / name, (*above, path)
    if not base.is_file():
        raise ConfigError(f"{path}: {BASE}: there is no file {base}; its name is read from the folder of {path.name}")
    if base.resolve() in [other.resolve() for other in above]:
        raise ConfigError(f"{BASE}: these files name each other in a circle: {', '.join(map(str, (*above, base)))}")
    return _merged(read_yaml(base, above), values)


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def set_option(values: dict[str, Any], name: str, value: Any) -> None:
    """Set ``a.b.c`` in nested plain values, making the levels on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{name}: {parent} is a value, not a group of options")
        values = child
    values[last] = value
