"""What a consumer says of a message that it did not consume."""

from __future__ import annotations

from typing import ClassVar


class Verdict(Exception):
    """On one message, or on each of a batch. Raise one of its subclasses, with the reason."""

    result: ClassVar[str] = "retry"

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)


class Retry(Verdict):
    """Deliver it again after a pause; after the attempts of the configuration, set it aside."""


class Drop(Verdict):
    """It is not for this consumer. The hub counts it as dropped."""

    result = "drop"


class DeadLetter(Verdict):
    """It will never be right: set it aside at once, for somebody to look at."""

    result = "dead_letter"


class Halt(Verdict):
    """Every message would fail: stop this consumer; the message stays where it is."""

    result = "halt"
