"""The child's side of the protocol of weir's kind ``exec``, version 1.

Promised:

1. Once `run` was called, nothing but the protocol gets onto the pipe to the hub: what the consumer
   or a program that it starts prints goes to stderr, and the standard input they see is empty.
2. Each message that was taken is answered once, as soon as its outcome is known.
3. At SIGTERM the message in hand is finished and answered, and what the hub sent beyond it is left
   for it to deliver again; at the end of the input all is finished. The exit status is then 0.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import traceback
from collections import deque
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    List,
    Mapping,
    NoReturn,
    Optional,
    Tuple,
    Type,
    Union,
)

from . import hub
from .delivery import Outcome, ask, deliver, outcome
from .handler import Consumer, refuse_what_only_begins
from .hub import Context
from .message import Message, from_hub
from .verdict import Halt

VERSION = 1

FAILED = 2
"""The exit status of a program that can't begin."""

Build = Callable[[Mapping[str, Any]], Consumer]


class Broken(Exception):
    """The hub's side of the protocol is not what it should be."""


class Refused(Exception):
    """A consumer can't begin, and the text says all there is to say."""


def run(consumer: Union[Consumer, Type[Consumer]]) -> NoReturn:
    """Runs a consumer as a child of the hub, and exits: the last line of a program.

    Takes what the decorator `consumer` made, or a subclass of `Consumer`.
    """
    if isinstance(consumer, type) and issubclass(consumer, Consumer):
        sys.exit(main(consumer, take_streams()))
    if isinstance(consumer, Consumer):
        made = consumer
        sys.exit(main(lambda settings: made, take_streams()))
    raise TypeError(f"{consumer!r} is no consumer: decorate it with @consumer before run()")


def take_streams() -> Tuple[int, int]:
    """Takes stdin and stdout away from the program, and answers where they are now."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)  # it counts as a log now
    return incoming, outgoing


def main(build: Build, streams: Tuple[int, int]) -> int:
    """Serves the hub behind these two descriptors until the end, and answers the exit status."""
    incoming, outgoing = streams
    if os.isatty(incoming):
        say("this is a consumer for the hub weir, which starts it: see its kind exec")
        return FAILED
    stop, stopped = os.pipe()
    os.set_blocking(stopped, False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: wake(stopped))
    answers = Answers(outgoing)
    try:
        return serve(build, Lines(incoming, stop), answers)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 0  # the hub has gone, and what was not answered with it
    except Broken as broken:
        say(f"the hub does not keep to the protocol: {broken}")
        return 1
    finally:
        hub.connect(None, None)


def wake(stopped: int) -> None:
    """Makes the end readable; once is enough."""
    try:
        os.write(stopped, b"x")
    except BlockingIOError:
        pass


def serve(build: Build, lines: Lines, answers: Answers) -> int:
    """From the handshake to the end."""
    first = lines.wait()
    if first is None:
        return 0
    told = parsed(first)
    if told.get("weir") != VERSION:
        answers.open({"weir": VERSION})
        say(
            f"the hub speaks version {told.get('weir')!r} of the protocol of its kind exec, this "
            f"package version {VERSION}: install the package that belongs to the hub"
        )
        return FAILED
    try:
        context = Context(
            told["hub"], told["consumer"], told.get("batch_max", 1), told.get("settings", {})
        )
    except KeyError as key:
        raise Broken(f"its first line has no {key}") from None
    hub.connect(context, lambda message: answers.send([{"publish": message}]))

    consumer: Optional[Consumer] = None
    halt = Halt()
    try:
        consumer = build(context.settings)
        refuse_what_only_begins(consumer.consume)
        refuse_what_only_begins(consumer.consume_batch)
    except Halt as why:
        halt = why  # it is not to run: the hub shows that with its first message
    except Refused as refused:
        say(f"the consumer {context.consumer!r} can't begin: {refused}")
        return FAILED
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        say(f"the consumer {context.consumer!r} can't begin: {type(error).__name__}: {error}")
        return FAILED

    batch_max = context.batch_max
    if consumer is not None and consumer.batch_max is not None:
        batch_max = min(batch_max, consumer.batch_max)
    hello: Dict[str, Any] = {"weir": VERSION, "batch_max": batch_max}
    if consumer is not None and consumer.ticks:
        hello["tick"] = True
    answers.open(hello)

    while True:
        line = lines.wait()
        if line is None:
            if consumer is not None:
                consumer.close()
            return 0
        taken: List[Tuple[Any, Message]] = []
        tick = False
        while line is not None:
            told = parsed(line)
            if "id" in told:
                taken.append((told["id"], message_of(told, line)))
            elif told.get("tick") is True:
                tick = True
            # Anything else is of a later version, and not for us.
            line = lines.more() if len(taken) < batch_max and not tick else None
        if consumer is None:
            settled = outcome(halt)
            answers.send([answer(name, settled) for name, _ in taken])
        elif consumer.takes_batches and taken:
            outcomes = deliver(consumer, [message for _, message in taken])
            named = zip((name for name, _ in taken), outcomes)
            answers.send([answer(name, came) for name, came in named])
        else:
            for name, message in taken:
                answers.send([answer(name, came) for came in deliver(consumer, [message])])
                if lines.stopped():
                    break
        if tick and consumer is not None:
            came = outcome(ask(consumer.tick))
            answers.send([{"tick": came.result, "reason": came.reason}])


def answer(name: Any, came: Outcome) -> Dict[str, Any]:
    """The answer to the message of this name."""
    told = {"id": name, "result": came.result}
    if came.reason:
        told["reason"] = came.reason
    return told


def parsed(line: bytes) -> Dict[str, Any]:
    """A line of the hub as the object that it has to be."""
    try:
        told = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Broken(f"a line is no JSON: {error}: {line[:100]!r}") from None
    if not isinstance(told, dict):
        raise Broken(f"a line is no object: {line[:100]!r}")
    return told


def message_of(told: Mapping[str, Any], line: bytes) -> Message:
    """The message of such a line."""
    try:
        return from_hub(told)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Broken(f"a message can't be read: {what}: {line[:100]!r}") from None


def say(text: str) -> None:
    """A line for the hub's log."""
    print(f"weir_consumer: {text}", file=sys.stderr, flush=True)


class Lines:
    """The lines that the hub sends."""

    def __init__(self, incoming: int, stop: int) -> None:
        self._incoming = incoming
        self._stop = stop
        self._lines: Deque[bytes] = deque()
        self._begun: List[bytes] = []
        self._poll = select.poll()
        self._poll.register(incoming, select.POLLIN)
        self._poll.register(stop, select.POLLIN)

    def wait(self) -> Optional[bytes]:
        """The next line, once there is one; None at the end of the input or when told to stop."""
        while not self.stopped():
            if self._lines:
                return self._lines.popleft()
            if self._readable(None) and not self._read():
                break
        return None

    def more(self) -> Optional[bytes]:
        """The next line if it is here already."""
        while not self._lines:
            if not self._readable(0) or not self._read():
                return None
        return self._lines.popleft()

    def stopped(self) -> bool:
        """Whether SIGTERM came. The signal's handler runs in between, and writes to this pipe."""
        return any(descriptor == self._stop for descriptor, _ in self._poll.poll(0))

    def _readable(self, timeout: Optional[int]) -> bool:
        return any(descriptor == self._incoming for descriptor, _ in self._poll.poll(timeout))

    def _read(self) -> bool:
        chunk = os.read(self._incoming, 1 << 16)
        if not chunk:
            return False
        *whole, rest = chunk.split(b"\n")
        if whole:
            self._lines.append(b"".join([*self._begun, whole[0]]))
            self._lines.extend(whole[1:])
            self._begun = []
        if rest:
            self._begun.append(rest)
        return True


class Answers:
    """What goes to the hub: whole lines, from any thread. Its first is the handshake's."""

    def __init__(self, outgoing: int) -> None:
        self._outgoing = outgoing
        self._lock = threading.Lock()
        # What is published before the handshake is answered waits here.
        self._waiting: Optional[List[bytes]] = []

    def open(self, hello: Mapping[str, Any]) -> None:
        """Answers the handshake."""
        with self._lock:
            waiting, self._waiting = self._waiting or [], None
            self._write(b"".join([line_of(hello), *waiting]))

    def send(self, told: Iterable[Mapping[str, Any]]) -> None:
        """Sends these."""
        lines = b"".join(map(line_of, told))
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(lines)
            else:
                self._write(lines)

    def _write(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self._outgoing, rest) :]


def line_of(told: Mapping[str, Any]) -> bytes:
    """Half of a surrogate pair, as a name of a file may have it, is no UTF-8: it becomes a `?`."""
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"
