"""What the hub told of itself and of this consumer, and the way back onto the bus."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Mapping, Optional, Union


@dataclass(frozen=True)
class Context:
    """Who asks for this consumer: the hub's first line."""

    hub: str
    """The hub's name."""
    consumer: str
    """The name of this consumer's section in the hub's configuration."""
    batch_max: int = 1
    """How many messages the hub hands over at a time, at most."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The section's ``settings``."""


TOPIC_MAX = 1024

Publish = Callable[[Dict[str, str]], None]

_context: Optional[Context] = None
_publish: Optional[Publish] = None


def connect(context: Optional[Context], publish: Optional[Publish]) -> None:
    """Makes this the hub that the functions below speak of."""
    global _context, _publish
    _context, _publish = context, publish


def context() -> Context:
    """Who asks for this consumer; known as soon as the consumer is built."""
    if _context is None:
        raise RuntimeError("there is no hub yet: it is known after run(), or in a test's harness")
    return _context


def settings() -> Mapping[str, Any]:
    """The ``settings`` of this consumer's section in the hub's configuration."""
    return context().settings


def publish(topic: str, payload: Union[str, bytes]) -> None:
    """Hands a message to the hub, which publishes it on its own socket.

    It returns at once, and nothing comes back: a hub that can't publish it counts and logs that.
    May be called from any thread.
    """
    if _publish is None:
        raise RuntimeError("there is no hub to publish to: call it after run(), or in a harness")
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a str, not {type(topic).__name__}")
    # What the protocol can't carry is the caller's error.
    if len(topic.encode("utf-8")) > TOPIC_MAX:
        raise ValueError(f"a topic has at most {TOPIC_MAX} bytes")
    told = {"topic": topic}
    if isinstance(payload, str):
        payload.encode("utf-8")
        told["payload"] = payload
    elif isinstance(payload, (bytes, bytearray, memoryview)):
        try:
            told["payload"] = bytes(payload).decode("utf-8")
        except UnicodeDecodeError:
            told["payload_base64"] = base64.b64encode(payload).decode("ascii")
    else:
        raise TypeError(f"a payload is a str or bytes, not {type(payload).__name__}")
    _publish(told)
