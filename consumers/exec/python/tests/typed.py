"""Consumers as authors write them, for mypy: what is marked as an error has to be one."""

from typing import Any, Mapping, Sequence

from weir_consumer import Consumer, Drop, Message, consumer, publish, run
from weir_consumer.testing import Harness


@consumer
def plain(message: Message) -> None:
    publish(message.topic, message.payload)


@consumer(batch_max=3)
def limited(message: Message) -> None:
    raise Drop(message.text)


@consumer(batch=True, tick=lambda: None)
def batch(messages: Sequence[Message]) -> None:
    messages[0].mark(Drop("first"))


@consumer(batch=True)  # type: ignore[arg-type]
def no_batch(message: Message) -> None: ...


@consumer  # type: ignore[arg-type]
def no_consumer(message: Message) -> int:
    return len(message.payload)


class Tally(Consumer):
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.count = 0

    def consume(self, message: Message) -> None:
        self.count += 1


def use() -> None:
    harness = Harness(Tally, {"a": 1})
    print(harness.feed("t", b"x").result, plain(harness.message("t", "x")))
    publish("t", 7)  # type: ignore[arg-type]
    run(print)  # type: ignore[arg-type]
    batch.run()
