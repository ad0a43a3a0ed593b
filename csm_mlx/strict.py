"""Dataclasses that read themselves from JSON-like data and refuse what they do not know."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from csm_mlx.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Strict:
    """Reads itself from JSON-like data, refusing what it does not know (`ConfigError` names field and place)."""

    @classmethod
    def from_dict(cls, data: Any, where: str = "config") -> "Self":
        if not isinstance(data, dict):
            raise ConfigError(f"{where} is {type(data).__name__} {data!r:.60}, expected an object of {cls.__name__}")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in data:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(fields))}"
                raise ConfigError(f"{where} has the unknown field {name!r}; {hint}")
        for name, f in fields.items():
            if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where} lacks the field {name!r}; it has {', '.join(map(str, data)) or 'nothing'}")
        values = {name: _read(hints[name], value, f"{where}.{name}") for name, value in data.items()}
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-like data; `from_dict` of it is equal to `self`. Fields that are None are left out."""
        return {f.name: _write(v) for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}


def _write(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _read(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}, expected one of {', '.join(map(repr, args))}")
        return value
    if isinstance(hint, type) and issubclass(hint, Strict):
        return hint.from_dict(value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}, expected an object")
        return dict(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {type(value).__name__} {value!r:.60}, expected {hint.__name__}")
    return value
