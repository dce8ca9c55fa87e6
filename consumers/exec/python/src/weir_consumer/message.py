"""A message as a consumer sees it."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone
from typing import Any, Mapping, Optional

from .verdict import DeadLetter, Verdict

_UNPARSED: Any = object()


class Message:
    """One message of the bus.

    ``seq`` is its number in the hub's order of intake; it stays the same when the message comes a
    second time. ``replayed`` says that it was settled before and comes again because somebody
    asked for it.
    """

    __slots__ = ("topic", "payload", "received", "seq", "replayed", "_json", "_verdict")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        *,
        received: Optional[datetime] = None,
        seq: int = 0,
        replayed: bool = False,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.received = datetime.now(timezone.utc) if received is None else received
        self.seq = seq
        self.replayed = replayed
        self._json: Any = _UNPARSED
        self._verdict: Optional[Verdict] = None

    @property
    def text(self) -> str:
        """The payload as text; a payload that is no UTF-8 is a dead letter."""
        try:
            return self.payload.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DeadLetter(f"the payload is not UTF-8: {error}") from error

    def json(self) -> Any:
        """The payload as JSON, parsed at the first call; one that is no JSON is a dead letter."""
        if self._json is _UNPARSED:
            try:
                self._json = json.loads(self.text)
            except (ValueError, RecursionError) as error:
                raise DeadLetter(f"the payload is not JSON: {error}") from error
        return self._json

    def mark(self, verdict: Verdict) -> None:
        """Gives this message of a batch a verdict of its own: ``message.mark(Drop("why"))``."""
        self._verdict = verdict

    @property
    def marked(self) -> Optional[Verdict]:
        """What `mark` gave it."""
        return self._verdict

    def __repr__(self) -> str:
        return f"<Message {self.seq} {self.topic!r}, {len(self.payload)} bytes>"


def from_hub(told: Mapping[str, Any]) -> Message:
    """Reads a line of the protocol. Raises KeyError, TypeError or ValueError when it is none."""
    if "payload_base64" in told:
        payload = base64.b64decode(told["payload_base64"], validate=True)
    else:
        payload = told["payload"].encode("utf-8")
    return Message(
        told["topic"],
        payload,
        received=datetime.fromtimestamp(told["received"], timezone.utc),
        seq=told["seq"],
        replayed=told.get("replayed", False),
    )
