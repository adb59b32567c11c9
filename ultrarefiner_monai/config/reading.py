"""Plain values (YAML) -> frozen dataclasses and back; unknown keys, wrong types and impossible values by name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Sequence
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


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Build the dataclass ``cls`` from plain values; unknown keys and wrong types are refused with their full name."""
    where = path or cls.__name__
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of options, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        names = ", ".join(f"{path}.{key}" if path else key for key in unknown)
        raise ConfigError(f"unknown option {names}; known here: {', '.join(sorted(known))}")
    kwargs = {k: _convert(hints[k], v, f"{path}.{k}" if path else k) for k, v in values.items()}
    return cls(**kwargs)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is object:  # another configuration's options
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        rest = [a for a in args if a is not type(None)]
        return _convert(rest[0], value, path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, path)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            raise ConfigError(f"{path}: expected one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a mapping, got {value!r}")
        return {str(k): _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


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
