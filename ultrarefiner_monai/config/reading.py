"""Plain values (YAML) -> frozen dataclasses and back; unknown keys, wrong types and impossible values by name.

pydantic reads and checks; its errors are said here in the words of who wrote the file.
"""

from __future__ import annotations

import copy
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
    """A configuration cannot be used; the message names the option. It is text that can be printed, whatever it quotes.

    where: the option's names from the outermost group on, or those of the group that ``from_dict`` found at fault.
    """

    def __init__(self, message: str, where: Sequence[str | int] = ()):
        super().__init__(_encodable(message))
        self.where = tuple(where)


def _encodable(text: str) -> str:
    """Text with its surrogates, which UTF-8 has no bytes for, as ``\\udcfc``."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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

    try:
        return _validator(cls).validate_python(values, extra="forbid")  # type: ignore[arg-type]
    except ValidationError as error:
        raise _in_words(cls, error.errors(include_url=False)) from error


@cache
def _validator(cls: type) -> Any:
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    return SchemaValidator(_as_in_yaml(TypeAdapter(cls).core_schema))


def _as_in_yaml(schema: Any) -> Any:
    """pydantic's schema, strict in what YAML tells apart and no further: no number is a bool, no text a number, no date a
    text; but a list is a tuple, a mapping a dataclass, and a key that YAML reads as a number is the text of it.

    Python's values are checked as they are. As JSON a date would be a text, a set a list, and a path that is not UTF-8
    (the command line gives it with surrogates) could not be said at all.
    """
    from pydantic_core.core_schema import no_info_before_validator_function as before

    if isinstance(schema, list):
        return [_as_in_yaml(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    schema = {key: _as_in_yaml(part) for key, part in schema.items() if key not in ("metadata", "serialization")}
    if kind == "dataclass":  # which pydantic takes from a mapping when it is not strict; its options still are
        return before(_with_text_keys, {**schema, "strict": False, "config": {**schema["config"], "strict": True}})
    if kind == "dict":
        return before(_with_text_keys, schema)
    if kind == "tuple":
        return before(lambda value: tuple(value) if isinstance(value, list) else value, schema)
    return schema


def _with_text_keys(value: Any) -> Any:
    return {_encodable(str(key)): part for key, part in value.items()} if isinstance(value, dict) else value


def _in_words(cls: type, errors: Sequence[Mapping[str, Any]]) -> ConfigError:
    """What pydantic found, said as the user wrote it: unknown options of one group all at once, else the first mistake."""
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    kind, loc, value = first["type"], first["loc"], first["input"]
    if kind == "value_error":  # of a __post_init__
        return ConfigError(str(first["ctx"]["error"]), loc)
    if kind == "unexpected_keyword_argument":
        names = sorted(_name(e["loc"]) for e in errors if e["type"] == kind and e["loc"][:-1] == loc[:-1])
        known = sorted(f.name for f in dataclasses.fields(_hint_at(cls, loc[:-1])))
        where = loc if len(names) == 1 else loc[:-1]
        return ConfigError(f"unknown option {', '.join(names)}; known here: {', '.join(known)}", where)
    if kind == "missing" and isinstance(loc[-1], str):
        return ConfigError(f"{_name(loc)}: the option is missing", loc)
    if kind == "missing":  # one value of a list
        loc = loc[:-1]
    hint = _hint_at(cls, loc)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    came = repr(value)
    if dataclasses.is_dataclass(hint):
        expected, came = "a mapping of options", type(value).__name__
        if value is None and loc:
            came = "nothing; leave the line out to keep what holds without it"
    elif origin is Literal:
        expected = f"one of {', '.join(map(repr, args))}"
    elif origin is tuple:
        expected, came = "a list", repr(value)
        if isinstance(value, (list, tuple)):
            expected, came = f"{len(args)} values", repr(list(value))
    else:
        expected = "a mapping" if origin is dict else hint.__name__
    return ConfigError(f"{_name(loc) or cls.__name__}: expected {expected}, got {came}", loc)


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
    """Read a YAML file (``read_yaml``) into ``cls``. ``overrides``: dotted names -> values, as given on the command line.

    A mistake is said with the file that it stands in: ``path``, or one of its bases.
    """
    layers = _with_bases(Path(path))
    values = _together(layers)
    given: dict[str, Any] = {}
    for name, value in (overrides or {}).items():
        set_option(values, name, value)
        set_option(given, name, value)
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        files = _files_that_say(error.where, [(Path(path), given), *layers])
        raise ConfigError(f"{' over '.join(map(str, files))}: {error}", error.where) from error


BASE = "base"  # the key of a YAML file that names another one


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The options of a YAML file as plain values.

    ``base: OTHER.yaml`` (from the folder of the file that says so) stands for the options of that file: what the file says
    itself comes on top, mapping by mapping; any other value, a list or null too, takes the place of the base's. A base may
    have a base. Raises ConfigError for what is no YAML in UTF-8, a base that is not there, or a circle.
    """
    return _together(_with_bases(Path(path)))


def _with_bases(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file, its base, the base's base and so on, each with the options that it says itself."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    while True:
        values = _read_alone(path)
        layers.append((path, values))
        if BASE not in values:
            return layers
        name = values.pop(BASE)
        require(isinstance(name, str) and bool(name), f"{path}: {BASE}: expected the name of a YAML file, got {name!r}")
        base, above = path.parent / name, [file for file, _ in layers]
        if not base.is_file():
            raise ConfigError(
                f"{path}: {BASE}: there is no file {base}; its name is read from the folder of {path.name}"
            )
        if base.resolve() in [other.resolve() for other in above]:
            raise ConfigError(f"{BASE}: these files name each other in a circle: {', '.join(map(str, (*above, base)))}")
        path = base


def _read_alone(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, 2020-02-31
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(values).__name__}")
    return values


def _together(layers: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _, own in reversed(layers):
        values = _merged(values, copy.deepcopy(own))
    return values


def _files_that_say(where: Sequence[str | int], layers: Sequence[tuple[Path, dict[str, Any]]]) -> list[Path]:
    """The files, the one on top first, that the value of an option comes from: several where it is a group of options."""
    while where:
        files = []
        for path, values in layers:
            found, value = _said(values, where)
            if found:
                files.append(path)
                if not isinstance(value, dict):  # what lies below does not count
                    break
        if files:
            return list(dict.fromkeys(files))
        where = where[:-1]
    return list(dict.fromkeys(path for path, values in layers if values)) or [layers[0][0]]


def _said(values: Any, names: Sequence[str | int]) -> tuple[bool, Any]:
    """Whether something stands at ``names``, and what. Of a list, say, it is the whole that is said."""
    for name in names:
        if not isinstance(values, dict):
            break
        keys = [key for key in values if str(key) == str(name)]
        if not keys:
            return False, None
        values = values[keys[0]]
    return True, values


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


def set_option(values: dict[str, Any], name: str, value: Any) -> None:
    """Set ``a.b.c`` in nested plain values, making the levels on the way: a group that is null begins with its defaults."""
    *parents, last = name.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        child = values[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"{name}: {parent} is a value, not a group of options")
        values = child
    values[last] = value
