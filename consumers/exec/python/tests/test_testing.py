"""The harness for authors' tests."""

import sys
import unittest

from child import SOURCES

sys.path.insert(0, SOURCES)

from weir_consumer import (  # noqa: E402
    Consumer,
    DeadLetter,
    Drop,
    Halt,
    consumer,
    context,
    publish,
    settings,
)
from weir_consumer.testing import Harness, Outcome  # noqa: E402


@consumer
def tally(message):
    """Counts."""
    if message.replayed:
        raise Drop("replayed")
    publish("out", message.payload)
    publish("out." + settings()["suffix"], str(message.json()["n"]))


@consumer(batch=True)
def batches(messages):
    messages[0].mark(Drop("first"))


class Ticking(Consumer):
    closed = False

    def tick(self):
        raise Halt("ticked")

    def close(self):
        self.closed = True


class Harnesses(unittest.TestCase):
    def test_outcomes_and_what_was_published(self):
        with Harness(tally, {"suffix": "a"}) as harness:
            self.assertEqual(harness.feed("t", '{"n": 7}'), Outcome("ok"))
            self.assertEqual(harness.published, [("out", b'{"n": 7}'), ("out.a", b"7")])
            self.assertEqual(harness.feed("t", b"\xff").result, "dead_letter")
            self.assertEqual(harness.published[2:], [("out", b"\xff")])
            self.assertEqual(harness.feed("t", "", replayed=True), Outcome("drop", "replayed"))
            self.assertEqual(context().consumer, "test")
        self.assertRaises(RuntimeError, context)

    def test_batches(self):
        with Harness(batches) as harness:
            outcomes = harness.feed_batch([("t", "a"), harness.message("t", b"b")])
        self.assertEqual(outcomes, [Outcome("drop", "first"), Outcome("ok")])

    def test_ticks_and_the_end(self):
        with Harness(Ticking) as harness:
            self.assertEqual(harness.tick(), Outcome("halt", "ticked"))
        self.assertTrue(harness.consumer.closed)

    def test_a_function_stays_one(self):
        self.assertEqual(tally.__doc__, "Counts.")
        with Harness(tally, {"suffix": "a"}) as harness:
            with self.assertRaises(DeadLetter):
                tally(harness.message("t", b"{"))


if __name__ == "__main__":
    unittest.main()
