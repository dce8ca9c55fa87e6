"""Hands messages to a consumer and catches what it says of them."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from typing import Callable, Iterator, Optional, Sequence

from .handler import Consumer
from .message import Message
from .verdict import Retry, Verdict

# A reason is what somebody reads and filters by, no place for a document.
REASON_MAX = 4000


@dataclass(frozen=True)
class Outcome:
    """What came of one message: ``ok`` or the name of a verdict, and why."""

    result: str
    reason: str = ""


def deliver(consumer: Consumer, messages: Sequence[Message]) -> Iterator[Outcome]:
    """An outcome for each message, in their order.

    A consumer without batches is called for a message only when its outcome is asked for.
    """
    if consumer.takes_batches:
        said = ask(lambda: consumer.consume_batch(messages))
        for message in messages:
            yield outcome(message.marked or said)
        return
    for message in messages:
        said = ask(lambda: consumer.consume(message))
        yield outcome(message.marked or said)


def ask(call: Callable[[], object]) -> Optional[Verdict]:
    """The verdict that it raises; one that it returns counts, too, as nobody means ok by it."""
    try:
        returned = call()
    except Verdict as verdict:
        return verdict
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        last = traceback.format_exception_only(type(error), error)[-1].strip()
        return Retry(last)
    return returned if isinstance(returned, Verdict) else None


def outcome(verdict: Optional[Verdict]) -> Outcome:
    """What the hub is told of it."""
    if verdict is None:
        return Outcome("ok")
    return Outcome(verdict.result, verdict.reason[:REASON_MAX])
