"""The package as a child of the hub: what comes in and what goes out over real pipes."""

import ast
import json
import os
import pathlib
import pty
import random
import signal
import subprocess
import sys
import unittest

from child import SOURCES, Child

sys.path.insert(0, SOURCES)

from weir_consumer.protocol import Lines  # noqa: E402

ECHO = """
    @consumer
    def handle(message):
        print("saw", message.text)
    run(handle)
"""


class Verdicts(unittest.TestCase):
    def test_each_way_to_end_is_told(self):
        script = """
            @consumer
            def handle(message):
                what = message.text
                if what == "return":
                    return Drop("returned")
                if what == "class":
                    raise Halt
                if what == "error":
                    raise ValueError("not\\nthat", "one")
                if what == "surrogate":
                    raise Retry("caf\\udce9")
                if what == "long":
                    raise Retry("x" * 100_000)
                if what != "ok":
                    which = {"retry": Retry, "drop": Drop, "dead": DeadLetter, "halt": Halt}
                    raise which[what]("why")
            handle.run()
        """
        with Child.of(script) as child:
            self.assertEqual(child.hello(), {"weir": 1, "batch_max": 1})
            for payload, expected in [
                ("ok", ("ok", None)),
                ("retry", ("retry", "why")),
                ("drop", ("drop", "why")),
                ("dead", ("dead_letter", "why")),
                ("halt", ("halt", "why")),
                ("class", ("halt", None)),
                ("return", ("drop", "returned")),
                ("error", ("retry", r"ValueError: ('not\nthat', 'one')")),
                ("surrogate", ("retry", "caf?")),
                ("long", ("retry", "x" * 4000)),
                ("what", ("retry", "KeyError: 'what'")),
                ("ok", ("ok", None)),
            ]:
                self.assertEqual(child.feed("t", payload), expected, payload)
            self.assertEqual(child.end(), 0)
            self.assertIn("Traceback", child.stderr())
            self.assertIn("line 11, in handle", child.stderr())

    def test_an_exception_that_cannot_be_shown_is_a_retry(self):
        script = """
            class Odd(Exception):
                def __str__(self):
                    raise RuntimeError
            @consumer
            def handle(message):
                raise Odd
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            result, reason = child.feed("t", "x")
            self.assertEqual(result, "retry")
            self.assertIn("Odd", reason)
            self.assertEqual(child.end(), 0)

    def test_what_is_not_json_or_no_text_is_a_dead_letter(self):
        script = """
            @consumer
            def handle(message):
                assert message.json() is message.json()
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            self.assertEqual(child.feed("t", '{"a": 1}'), ("ok", None))
            for payload in ["{", "", b"\xff", "[" * 200_000]:
                result, reason = child.feed("t", payload)
                self.assertEqual(result, "dead_letter")
                self.assertIn("the payload is not", reason)


class Messages(unittest.TestCase):
    def test_all_that_a_message_has(self):
        script = """
            @consumer
            def handle(message):
                got = [message.topic, list(message.payload), message.seq, message.replayed]
                raise Retry(repr([*got, message.received.isoformat(timespec="milliseconds")]))
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            when = "2023-11-14T22:13:20.123+00:00"
            for payload in ["", "a\u2028\n\"é\U0001f30a\x00", b"\xff\x00"]:
                coded = payload if isinstance(payload, bytes) else payload.encode()
                result, reason = child.feed("org.é", payload, seq=2**60, replayed=True)
                expected = ["org.é", list(coded), 2**60, True, when]
                self.assertEqual(ast.literal_eval(reason), expected)

    def test_an_id_comes_back_as_it_is(self):
        with Child.of(ECHO) as child:
            child.hello()
            for name in [0, 2**64 - 1]:
                child.send({**child.message("t", "x"), "id": name})
                self.assertEqual(child.answer(), {"id": name, "result": "ok"})

    def test_a_long_message(self):
        script = """
            @consumer
            def handle(message):
                raise Retry(str(len(message.payload)))
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            self.assertEqual(child.feed("t", "x" * 5_000_000), ("retry", "5000000"))

    def test_what_later_versions_say_is_ignored(self):
        with Child.of(ECHO) as child:
            child.hello(more="members")
            child.send({"news": 1})
            self.assertEqual(child.feed("t", "x", more={"a": []}), ("ok", None))
            self.assertEqual(child.end(), 0)

    def test_lines_are_the_same_however_they_are_cut(self):
        chance = random.Random(6)
        lines = [bytes([65 + n % 26]) * chance.randrange(0, 9) for n in range(500)]
        stream = b"".join(line + b"\n" for line in lines)
        end, writing = os.pipe()
        stop, _ = pipe = os.pipe()
        reader, got = Lines(end, stop), []
        while stream:
            cut = chance.randrange(1, 40)
            os.write(writing, stream[:cut])
            stream = stream[cut:]
            while True:
                line = reader.more()
                if line is None:
                    break
                got.append(line)
        os.close(writing)
        self.assertIsNone(reader.wait())
        self.assertEqual(got, lines)
        for descriptor in (end, *pipe):
            os.close(descriptor)


class Streams(unittest.TestCase):
    def test_what_is_printed_is_no_protocol(self):
        script = """
            import os, subprocess, sys
            @consumer
            def handle(message):
                print("by print")
                sys.stdout.write("by write")
                os.write(1, b"by descriptor\\n")
                subprocess.run(["echo", "by a program"], check=True)
                sys.__stdout__.write("by the other name\\n")
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            self.assertEqual(child.feed("t", "x"), ("ok", None))
            self.assertEqual(child.end(), 0)
            for text in ["by print", "by write", "by descriptor", "by a program"]:
                self.assertIn(text, child.stderr())
            self.assertIn("by the other name", child.stderr())

    def test_nobody_else_reads_the_messages(self):
        script = """
            import subprocess, sys
            @consumer
            def handle(message):
                assert sys.stdin.read() == ""
                assert subprocess.run(["cat"], stdout=subprocess.PIPE).stdout == b""
            run(handle)
        """
        with Child.of(script) as child:
            child.hello(batch_max=2)
            child.send(child.message("t", "x"), child.message("t", "y"))
            self.assertEqual([child.answer()["result"] for _ in range(2)], ["ok", "ok"])

    def test_on_a_terminal_it_says_what_it_is(self):
        ours, theirs = pty.openpty()
        script = f"import sys; sys.path.insert(0, {SOURCES!r})\nfrom weir_consumer import *\n"
        script += "@consumer\ndef handle(message): pass\nrun(handle)\n"
        done = subprocess.run(
            [sys.executable, "-c", script], stdin=theirs, stderr=subprocess.PIPE, check=False
        )
        os.close(ours)
        os.close(theirs)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"kind exec", done.stderr)


class Batches(unittest.TestCase):
    SCRIPT = """
        @consumer(batch_max=3, batch=True)
        def handle(messages):
            for message in messages:
                if message.text == "mine":
                    message.mark(Drop("marked"))
            if any(message.text == "all" for message in messages):
                raise DeadLetter(f"{len(messages)} at once")
        run(handle)
    """

    def test_a_batch_is_answered_message_by_message(self):
        with Child.of(self.SCRIPT) as child:
            self.assertEqual(child.hello(batch_max=100), {"weir": 1, "batch_max": 3})
            batch = [child.message("t", text) for text in ["all", "mine", "x"]]
            child.send(*batch)
            answers = [child.answer() for _ in batch]
            self.assertEqual([one["id"] for one in answers], [one["id"] for one in batch])
            self.assertEqual(answers[1]["result"], "drop")
            self.assertEqual(answers[1]["reason"], "marked")
            for one in (answers[0], answers[2]):
                self.assertEqual(one["reason"], "3 at once")
            self.assertEqual(child.feed("t", "x"), ("ok", None))
            self.assertEqual(child.end(), 0)

    def test_a_hub_that_offers_less_gets_no_more(self):
        with Child.of(self.SCRIPT) as child:
            self.assertEqual(child.hello(batch_max=2), {"weir": 1, "batch_max": 2})

    def test_more_than_a_batch_is_several(self):
        with Child.of(self.SCRIPT) as child:
            child.hello(batch_max=100)
            batch = [child.message("t", "all") for _ in range(7)]
            child.send(*batch)
            reasons = [child.answer()["reason"] for _ in batch]
            # What is here is taken; how much that is depends on the pipe.
            self.assertTrue(set(reasons) <= {"1 at once", "2 at once", "3 at once"}, reasons)

    def test_without_batches_each_is_answered_before_the_next_begins(self):
        script = """
            import os
            @consumer
            def handle(message):
                if message.text == "die":
                    os._exit(7)
            run(handle)
        """
        with Child.of(script) as child:
            child.hello(batch_max=10)
            child.send(*[child.message("t", text) for text in ["a", "b", "die", "c"]])
            self.assertEqual([child.answer()["id"] for _ in range(2)], [1, 2])
            self.assertIsNone(child.answer())
            self.assertEqual(child.status(), 7)


class Publishing(unittest.TestCase):
    def test_text_bytes_and_from_several_threads(self):
        script = """
            import threading
            @consumer
            def handle(message):
                publish("out.é", message.text)
                publish("out.bytes", b"\\xff\\n")
                publish("out.bytes", bytearray(b"text"))
                def many(who):
                    for number in range(200):
                        publish(f"many.{who}", str(number) * 50)
                threads = [threading.Thread(target=many, args=[who]) for who in range(4)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            self.assertEqual(child.feed("t", "é\n"), ("ok", None))
            self.assertEqual(
                child.published[:3],
                [("out.é", "é\n".encode()), ("out.bytes", b"\xff\n"), ("out.bytes", b"text")],
            )
            for who in range(4):
                mine = [text for topic, text in child.published if topic == f"many.{who}"]
                self.assertEqual(mine, [(str(n) * 50).encode() for n in range(200)])

    def test_what_cannot_be_said_is_the_callers_error(self):
        script = """
            @consumer
            def handle(message):
                half = "\\ud800"
                wrong = [("t", 7), ("t", {}), (b"t", ""), (half, ""), ("t", half), ("é" * 513, "")]
                for topic, payload in wrong:
                    try:
                        publish(topic, payload)
                    except (TypeError, ValueError):
                        continue
                    raise Halt(f"{topic!r} {payload!r} was published")
                publish("é" * 512, "")
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            self.assertEqual(child.feed("t", "x"), ("ok", None))
            self.assertEqual(child.published, [("é" * 512, b"")])

    def test_what_is_published_by_a_constructor_follows_the_handshake(self):
        script = """
            class Early(Consumer):
                def __init__(self, settings):
                    publish("early", context().hub + context().consumer + settings["a"])
            run(Early)
        """
        with Child.of(script) as child:
            self.assertEqual(child.hello(settings={"a": "!"}), {"weir": 1, "batch_max": 1})
            self.assertEqual(child.line(), {"publish": {"topic": "early", "payload": "hubname!"}})


class Classes(unittest.TestCase):
    def test_a_class_has_settings_ticks_and_an_end(self):
        script = """
            class Tally(Consumer):
                def __init__(self, settings):
                    self.count, self.topic = 0, settings["topic"]
                def consume(self, message):
                    self.count += 1
                def tick(self):
                    if self.count == 2:
                        raise Halt("enough")
                    publish(self.topic, str(self.count))
                def close(self):
                    publish(self.topic, "closed")
            run(Tally)
        """
        with Child.of(script) as child:
            hello = child.hello(settings={"topic": "tally"})
            self.assertEqual(hello, {"weir": 1, "batch_max": 1, "tick": True})
            child.feed("t", "x")
            child.send({"tick": True})
            self.assertEqual(child.answer()["tick"], "ok")
            child.feed("t", "x")
            child.send({"tick": True})
            self.assertEqual(child.answer(), {"tick": "halt", "reason": "enough"})
            self.assertEqual(child.end(), 0)
            self.assertEqual(child.published, [("tally", b"1"), ("tally", b"closed")])

    def test_batches_of_a_class(self):
        script = """
            class Many(Consumer):
                batch_max = 5
                def consume_batch(self, messages):
                    raise Retry(type(messages).__name__)
            run(Many)
        """
        with Child.of(script) as child:
            self.assertEqual(child.hello(batch_max=9)["batch_max"], 5)
            self.assertEqual(child.feed("t", "x"), ("retry", "list"))

    def test_a_function_may_tick(self):
        script = """
            @consumer(tick=lambda: publish("tick", ""))
            def handle(message): pass
            run(handle)
        """
        with Child.of(script) as child:
            self.assertTrue(child.hello()["tick"])
            child.send({"tick": True})
            self.assertEqual(child.answer()["tick"], "ok")
            self.assertEqual(child.published, [("tick", b"")])

    def test_a_constructor_that_fails_ends_the_program(self):
        script = """
            class Bad(Consumer):
                def __init__(self, settings):
                    settings["topic"]
            run(Bad)
        """
        with Child.of(script) as child:
            self.assertIsNone(child.hello())
            self.assertEqual(child.status(), 2)
            self.assertIn("consumer 'name' can't begin: KeyError: 'topic'", child.stderr())

    def test_a_constructor_that_halts_halts_the_consumer(self):
        script = """
            class Off(Consumer):
                def __init__(self, settings):
                    raise Halt("switched off")
            run(Off)
        """
        with Child.of(script) as child:
            self.assertEqual(child.hello(batch_max=2), {"weir": 1, "batch_max": 2})
            self.assertEqual(child.feed("t", "x"), ("halt", "switched off"))
            self.assertEqual(child.end(), 0)

    def test_what_would_settle_without_doing_anything_is_refused(self):
        for script, text in [
            ("@consumer\nasync def handle(message): pass\nrun(handle)", "is async"),
            ("@consumer\ndef handle(message): yield\nrun(handle)", "is a generator"),
            ("def handle(message): pass\nrun(handle)", "is no consumer"),
            ("run(print)", "is no consumer"),
            ("@consumer(batch_max=0)\ndef handle(message): pass", "batch_max has to be"),
            (
                "class C(Consumer):\n  async def consume(self, message): pass\nrun(C)",
                "is async",
            ),
        ]:
            with Child.of(script) as child:
                self.assertIsNone(child.hello())
                self.assertIn(child.status(), (1, 2))
                self.assertIn(text, child.stderr())


class Beginnings(unittest.TestCase):
    def test_another_version_is_told_to_both(self):
        with Child.of(ECHO) as child:
            self.assertEqual(child.hello(weir=2), {"weir": 1})
            self.assertEqual(child.status(), 2)
            self.assertIn("speaks version 2", child.stderr())

    def test_bad_lines_end_it_with_a_text(self):
        for lines, text in [
            ([b"nonsense\n"], "is no JSON"),
            ([b"\xff\n"], "is no JSON"),
            ([b"[1]\n"], "is no object"),
            ([b"[" * 200_000 + b"\n"], "is no JSON"),
            ([b'{"weir":1}\n'], "its first line has no 'hub'"),
        ]:
            with Child.of(ECHO) as child:
                for line in lines:
                    child.write(line)
                self.assertIsNone(child.line())
                self.assertEqual(child.status(), 1, text)
                self.assertIn(text, child.stderr())
                self.assertNotIn("Traceback", child.stderr())

    def test_bad_messages_end_it_with_a_text(self):
        good = {"id": 1, "topic": "t", "payload": "x", "received": 1.5, "seq": 1}
        for change in [
            {"payload": 7},
            {"payload": None},
            {"payload_base64": "%"},
            {"received": "now"},
            {"received": 1e300},
            {"topic": None, "payload_base64": 5},
        ]:
            with Child.of(ECHO) as child:
                child.hello()
                child.send({**good, **change})
                self.assertIsNone(child.line(), change)
                self.assertEqual(child.status(), 1)
                self.assertIn("a message can't be read", child.stderr())
        for missing in ["topic", "payload", "received", "seq"]:
            with Child.of(ECHO) as child:
                child.hello()
                child.send({name: good[name] for name in good if name != missing})
                self.assertIsNone(child.line(), missing)
                self.assertEqual(child.status(), 1)

    def test_calls_before_there_is_a_hub_say_so(self):
        script = "try:\n  publish('t', '')\nexcept RuntimeError as e: print(e)\nsettings()"
        with Child.of(script) as child:
            self.assertEqual(child.status(), 1)
            self.assertIn("there is no hub yet", child.stderr())


class Ends(unittest.TestCase):
    # Tells that it is in the message, then waits until it is told to go on.
    SLOW = """
        import os, sys
        @consumer
        def handle(message):
            publish("begun", "")
            while not os.path.exists(message.text):
                pass
        run(handle)
    """

    def test_the_end_of_the_input(self):
        with Child.of(ECHO) as child:
            self.assertEqual(child.end(), 0)
        with Child.of(ECHO) as child:
            child.hello(batch_max=9)
            child.send(child.message("t", "x"), child.message("t", "y"))
            child.process.stdin.close()
            self.assertEqual([child.answer()["id"], child.answer()["id"]], [1, 2])
            self.assertIsNone(child.answer())
            self.assertEqual(child.status(), 0)

    def test_half_a_line_at_the_end_is_nothing(self):
        with Child.of(ECHO) as child:
            child.hello()
            child.write(json.dumps(child.message("t", "x")).encode())
            self.assertEqual(child.end(), 0)
            self.assertNotIn("saw", child.stderr())

    def test_sigterm_while_idle(self):
        with Child.of(ECHO) as child:
            child.hello()
            child.feed("t", "x")
            child.process.send_signal(signal.SIGTERM)
            self.assertIsNone(child.line())
            self.assertEqual(child.status(), 0)

    def test_sigterm_lets_the_message_in_hand_be_finished_and_no_other(self):
        with Child.of(self.SLOW) as child:
            child.hello(batch_max=2)
            gate = pathlib.Path(self.enterTemporary()) / "go"
            child.send(child.message("t", str(gate)), child.message("t", str(gate)))
            self.assertEqual(child.line()["publish"]["topic"], "begun")
            child.process.send_signal(signal.SIGTERM)
            gate.touch()
            self.assertEqual(child.line(), {"id": 1, "result": "ok"})
            self.assertIsNone(child.line())
            self.assertEqual(child.status(), 0)

    def test_an_interrupt_is_quiet(self):
        with Child.of(self.SLOW) as child:
            child.hello()
            child.send(child.message("t", "/never"))
            self.assertEqual(child.line()["publish"]["topic"], "begun")
            child.process.send_signal(signal.SIGINT)
            self.assertIsNone(child.line())
            self.assertEqual(child.status(), 128 + signal.SIGINT)
            self.assertEqual(child.stderr(), "")

    def test_a_hub_that_is_gone(self):
        with Child.of(ECHO) as child:
            child.hello()
            child.process.stdout.close()
            child.send(child.message("t", "x"))
            self.assertEqual(child.status(), 0)
            self.assertNotIn("Traceback", child.stderr())

    def test_sys_exit_leaves_the_message_unanswered(self):
        script = """
            import sys
            @consumer
            def handle(message):
                sys.exit(9)
            run(handle)
        """
        with Child.of(script) as child:
            child.hello()
            child.send(child.message("t", "x"))
            self.assertIsNone(child.line())
            self.assertEqual(child.status(), 9)

    def enterTemporary(self):
        import tempfile

        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        return directory.name


class Sources(unittest.TestCase):
    def test_they_are_python_3_8(self):
        files = list(pathlib.Path(SOURCES).rglob("*.py"))
        self.assertGreater(len(files), 5)
        for file in files:
            ast.parse(file.read_text(), str(file), feature_version=(3, 8))


if __name__ == "__main__":
    unittest.main()
