"""A part of the graph that is built so often, and always the same, that it is worth compiling."""

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any
from weakref import WeakMethod

import mlx.core as mx


class Piece:
    """A compiled method of a module, whose weights are constants in it.

    MLX then repeats the graph without Python, in a third of the time. The first call with other shapes traces it again,
    and so does the first one in another thread. The module may hold its piece: the piece does not hold the module.
    """

    __slots__ = ("_compiled", "_found", "_keys", "_modules")

    def __init__(self, method: Callable[..., Any], made_of: Sequence[tuple[Any, Any, Any]]):
        """made_of: (module, name, what has that name there now), all that `method` looks up."""
        self._modules, self._keys, self._found = zip(*made_of, strict=True)
        weak = WeakMethod(method)

        def call(*arguments: Any) -> Any:
            bound = weak()
            assert bound is not None, "the module that would call it is gone"
            return bound(*arguments)

        self._compiled: Callable[..., Any] = mx.compile(call)

    @property
    def made_of(self) -> list[tuple[Any, Any, Any]]:
        return list(zip(self._modules, self._keys, self._found, strict=True))

    def is_current(self) -> bool:
        """Whether every weight is still the one that it was made of: training, adapters and `update` bring others."""
        return all(map(is_, map(dict.get, self._modules, self._keys), self._found))

    def __call__(self, *arguments: Any) -> Any:
        """The method's outputs; its arguments are arrays, or lists and tuples of them."""
        return self._compiled(*arguments)
