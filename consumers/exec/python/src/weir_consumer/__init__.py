"""Consumers in Python for the message hub weir.

A consumer is a program that the hub runs as a child process, by a section of the kind ``exec``::

    from weir_consumer import Drop, Message, consumer, run

    @consumer
    def handle(message: Message) -> None:
        build = message.json()
        if build["state"] != "done":
            raise Drop("not done yet")
        print(build["name"])

    if __name__ == "__main__":
        run(handle)

To return settles the message as consumed. ``Retry``, ``Drop``, ``DeadLetter`` and ``Halt`` are the
hub's other verdicts, raised with a reason; any other exception is a retry. What is printed goes to
the hub's log.

``weir_consumer.testing`` feeds messages to a consumer without a hub. ``python -m
weir_consumer.moksha module:Class`` runs a consumer class of Moksha or fedmsg as it is.
"""

from .handler import Consumer, consumer
from .hub import Context, context, publish, settings
from .message import Message
from .protocol import run
from .verdict import DeadLetter, Drop, Halt, Retry, Verdict

__all__ = [
    "Consumer",
    "Context",
    "DeadLetter",
    "Drop",
    "Halt",
    "Message",
    "Retry",
    "Verdict",
    "consumer",
    "context",
    "publish",
    "run",
    "settings",
]
