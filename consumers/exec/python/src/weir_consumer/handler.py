"""How an author writes a consumer: a function with a decorator, or a class."""

from __future__ import annotations

import inspect
from typing import (
    Any,
    Callable,
    Generic,
    Literal,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    TypeVar,
    Union,
    overload,
)

from .message import Message
from .verdict import Verdict

T = TypeVar("T")


class Consumer:
    """A consumer with a state. Write a subclass, and give the class to `run`.

    It is made once the hub has told its settings; an exception there ends the program, and the hub
    tells why. Its methods are called one after another, on the program's main thread.
    """

    batch_max: Optional[int] = None
    """How many messages it takes at a time; None is as many as the hub offers."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Checks settings, and connects if it has to."""

    def consume(self, message: Message) -> Optional[Verdict]:
        """Handles one message: returns, or raises what it says of it."""
        raise NotImplementedError(f"{type(self).__name__} has no method consume")

    def consume_batch(self, messages: Sequence[Message]) -> Optional[Verdict]:
        """Handles several messages at once, where a subclass has it.

        What it raises is said of all of them but those that it gave a verdict with `Message.mark`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method consume_batch")

    def tick(self) -> None:
        """Called about once a second between messages, where a subclass has it."""

    def close(self) -> None:
        """Called after the last message of an orderly end."""

    @property
    def takes_batches(self) -> bool:
        """Whether `consume_batch` is what gets the messages."""
        return type(self).consume_batch is not Consumer.consume_batch

    @property
    def ticks(self) -> bool:
        """Whether the hub has to send ticks."""
        return type(self).tick is not Consumer.tick


class Function(Consumer, Generic[T]):
    """A consumer made of a function by `consumer`. A call of it calls the function."""

    def __init__(
        self,
        function: Callable[[T], Optional[Verdict]],
        batch_max: Optional[int],
        batch: bool,
        tick: Optional[Callable[[], None]],
    ) -> None:
        for given in (function, tick):
            if given is not None:
                refuse_what_only_begins(given)
        if batch_max is not None and (not isinstance(batch_max, int) or batch_max < 1):
            raise ValueError(f"batch_max has to be a number from 1, not {batch_max!r}")
        self.batch_max = batch_max
        self._function = function
        self._batch = batch
        self._tick = tick
        self.__doc__ = function.__doc__

    def __call__(self, argument: T) -> Optional[Verdict]:
        return self._function(argument)

    def consume(self, message: Message) -> Optional[Verdict]:
        argument: Any = message
        return self._function(argument)

    def consume_batch(self, messages: Sequence[Message]) -> Optional[Verdict]:
        argument: Any = messages
        return self._function(argument)

    def tick(self) -> None:
        if self._tick is not None:
            self._tick()

    @property
    def takes_batches(self) -> bool:
        return self._batch

    @property
    def ticks(self) -> bool:
        return self._tick is not None

    def run(self) -> NoReturn:
        """Runs it as a child of the hub: the last line of a program."""
        from .protocol import run

        run(self)


def refuse_what_only_begins(function: Callable[..., Any]) -> None:
    """A call of such a function does nothing yet, and its message would count as consumed."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__} is async: call asyncio.run inside a plain def")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator: it has a yield")


Single = Callable[[Message], Optional[Verdict]]
Batch = Callable[[Sequence[Message]], Optional[Verdict]]


@overload
def consumer(function: Single) -> Function[Message]: ...
@overload
def consumer(
    *,
    batch_max: Optional[int] = ...,
    batch: Literal[False] = ...,
    tick: Optional[Callable[[], None]] = ...,
) -> Callable[[Single], Function[Message]]: ...
@overload
def consumer(
    *,
    batch_max: Optional[int] = ...,
    batch: Literal[True],
    tick: Optional[Callable[[], None]] = ...,
) -> Callable[[Batch], Function[Sequence[Message]]]: ...
def consumer(
    function: Optional[Callable[[Any], Optional[Verdict]]] = None,
    *,
    batch_max: Optional[int] = None,
    batch: bool = False,
    tick: Optional[Callable[[], None]] = None,
) -> Union[Function[Any], Callable[[Callable[[Any], Optional[Verdict]]], Function[Any]]]:
    """Makes a consumer of a function that handles one message, or with ``batch=True`` several.

    ``batch_max`` is how many messages it takes from the hub at a time, None as many as the hub
    offers; ``tick`` is called about once a second between messages.
    """
    if function is not None:
        return Function(function, batch_max, batch, tick)
    return lambda function: Function(function, batch_max, batch, tick)
