"""Feeds messages to a consumer without a hub, the way the hub would.

::

    from weir_consumer.testing import Harness

    harness = Harness(handle)
    assert harness.feed("org.example.build", '{"state": "done"}').result == "ok"
    assert harness.feed("org.example.build", "{").result == "dead_letter"
"""

from __future__ import annotations

import base64
from types import TracebackType
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Type, Union

from . import hub
from .delivery import Outcome, ask, deliver
from .handler import Consumer
from .hub import Context
from .message import Message

__all__ = ["Harness", "Outcome"]


class Harness:
    """A consumer and what came of the messages that it was fed.

    While it is there it stands for the hub: ``settings()`` and ``publish()`` speak to it. The last
    one that was made is the one they speak to.
    """

    def __init__(
        self,
        consumer: Union[Consumer, Type[Consumer]],
        settings: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.published: List[Tuple[str, bytes]] = []
        """What the consumer published: topic and payload."""
        self._seq = 0
        context = Context("test", "test", settings=settings or {})
        hub.connect(context, self._publish)
        self.consumer = consumer if isinstance(consumer, Consumer) else consumer(context.settings)

    def feed(
        self, topic: str, payload: Union[str, bytes], *, replayed: bool = False
    ) -> Outcome:
        """Delivers one message."""
        return self.feed_batch([self.message(topic, payload, replayed=replayed)])[0]

    def feed_batch(self, messages: Iterable[Union[Message, Tuple[str, str]]]) -> List[Outcome]:
        """Delivers several at once: messages, or pairs of a topic and a payload."""
        made = [m if isinstance(m, Message) else self.message(*m) for m in messages]
        return list(deliver(self.consumer, made))

    def message(
        self, topic: str, payload: Union[str, bytes], *, replayed: bool = False
    ) -> Message:
        """The next message of this hub."""
        self._seq += 1
        data = payload.encode("utf-8") if isinstance(payload, str) else payload
        return Message(topic, data, seq=self._seq, replayed=replayed)

    def tick(self) -> Outcome:
        """What the hub does about once a second."""
        said = ask(self.consumer.tick)
        return Outcome("ok") if said is None else Outcome(said.result, said.reason)

    def close(self) -> None:
        """The orderly end."""
        self.consumer.close()
        hub.connect(None, None)

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def _publish(self, told: Dict[str, str]) -> None:
        if "payload_base64" in told:
            payload = base64.b64decode(told["payload_base64"])
        else:
            payload = told["payload"].encode("utf-8")
        self.published.append((told["topic"], payload))
