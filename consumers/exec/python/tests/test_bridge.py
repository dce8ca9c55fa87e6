"""Consumers of Moksha and fedmsg behind the bridge see what they see in Moksha's own hub."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

from child import PATIENCE, Child

HERE = pathlib.Path(__file__).parent

# A body of each sort, and what is no JSON.
BODIES = [
    '{"a": {"b": [1, 2.5, null]}, "é": "\\ud83c\\udf0a"}',
    "[]",
    '"text"',
    "7",
    "null",
    "",
    "no json",
    "{",
    "é",
    '{"a": 1, "a": 2}',
    "NaN",
    "[" * 100_000,
]


def messages(*topics):
    """Each body on each of these topics."""
    return [[topic, body] for topic in topics for body in BODIES]


@unittest.skipUnless(importlib.util.find_spec("moksha"), "moksha.hub and fedmsg are not installed")
class Bridged(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.seen = self.directory / "seen"

    def bridge(self, name, *arguments):
        """The bridge with one of the classes, in an empty directory."""
        target = name if name[0].islower() else f"legacy:{name}"
        return Child(
            ["-m", "weir_consumer.moksha", target, *map(str, arguments)],
            env={"SEEN": str(self.seen), "HOME": str(self.directory)},
            cwd=self.directory,
            path=[HERE],
        )

    def saw(self):
        """What the class saw since it was last asked."""
        if not self.seen.exists():
            return []
        lines = self.seen.read_text().splitlines()
        self.seen.unlink()
        return [json.loads(line, parse_constant=str) for line in lines]

    def in_the_real_hub(self, name, config, sent, subscriptions):
        done = subprocess.run(
            [sys.executable, str(HERE / "real_hub.py"), name],
            input=json.dumps(
                {"config": config, "messages": sent, "subscriptions": subscriptions}
            ).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "SEEN": str(self.seen), "HOME": str(self.directory)},
            cwd=self.directory,
            timeout=2 * PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        published = json.loads(done.stdout.splitlines()[-1])
        return self.saw(), [(topic, body.encode("latin-1")) for topic, body in published]

    def behind_the_bridge(self, name, config, sent):
        with self.bridge(name) as child:
            hello = child.hello(settings=config)
            self.assertEqual(hello, {"weir": 1, "batch_max": 1}, child.stderr())
            outcomes = [child.feed(topic, body) for topic, body in sent]
            self.assertEqual(child.end(), 0)
            return self.saw(), child.published, outcomes, child.stderr()

    def compare(self, name, sent, config=None, subscriptions=1):
        """Runs it both ways; answers the outcomes and what the bridge wrote to its log."""
        config = config or {}
        real, really_published = self.in_the_real_hub(name, config, sent, subscriptions)
        self.assertEqual(really_published[-1], ("end", b'"end"'))
        bridged, published, outcomes, log = self.behind_the_bridge(name, config, sent)
        self.assertEqual(bridged, real)
        self.assertEqual(published, really_published)
        return outcomes, log


FEDMSG = {"endpoints": {}, "legacy.fedmsg.enabled": True, "validate_signatures": False}


class TheSame(Bridged):
    def test_bodies_of_every_sort(self):
        sent = messages("org.example.a", "org.example.") + [["org.example.a", '"end"']]
        outcomes, _ = self.compare("Plain", sent)
        self.assertEqual(set(outcomes), {("ok", None)})

    def test_topics_of_others(self):
        sent = [[topic, "1"] for topic in ["org.example", "org.example.", "com.", "", "é"]]
        outcomes, _ = self.compare("Plain", [*sent, ["org.example.a", '"end"']])
        self.assertEqual([result for result, _ in outcomes], ["drop", "ok", *["drop"] * 3, "ok"])
        self.assertIn("org.example.", outcomes[0][1])

    def test_everything(self):
        sent = [[topic, "1"] for topic in ["org.example", "com.", "é"]]
        self.compare("Everything", [*sent, ["end", '"end"']])

    def test_strict_topics(self):
        sent = [[topic, "1"] for topic in ["org.example.", "org.example.a"]]
        sent.append(["org.example.", '"end"'])
        outcomes, _ = self.compare("Plain", sent, {"zmq_strict": True})
        self.assertEqual([result for result, _ in outcomes], ["ok", "drop", "ok"])

    def test_without_json(self):
        self.compare("Raw", messages("org.example.a") + [["org.example", '"end"']])

    def test_configuration_and_state(self):
        config = {"my.topic": "org.", "my.number": 7}
        sent = [["org.a", "1"], ["com.a", "1"], ["org.b", "2"], ["end", '"end"']]
        self.compare("Configured", sent, config, subscriptions=2)

    def test_what_it_sends(self):
        sent = [["org.example.one", "{}"], ["org.example.two", "[]"], ["org.example.end", '"end"']]
        outcomes, log = self.compare("Sending", sent, subscriptions=3)
        self.assertEqual(set(outcomes), {("ok", None)})
        self.assertIn("Cannot send message", log)

    def test_hooks_and_errors(self):
        sent = [["org.example", json.dumps(body)] for body in ["a", "invalid", "bad", "end"]]
        outcomes, log = self.compare("Hooked", sent)
        self.assertEqual(
            outcomes,
            [
                ("ok", None),
                ("drop", "invalid: ValueError: it is invalid"),
                ("retry", "ValueError: it is bad"),
                ("ok", None),
            ],
        )
        self.assertIn("this is only logged", log)

    def test_beneath_the_base_class(self):
        sent = [["org.example", json.dumps(body)] for body in ["a", "end"]]
        self.compare("Beneath", sent)

    def test_subscriptions_of_its_own(self):
        sent = [["net.a", "x"], ["net.stop", "x"], ["net.b", "x"], ["org.example", '"end"']]
        outcomes, _ = self.compare("Direct", sent, subscriptions=2)
        self.assertEqual([result for result, _ in outcomes], ["ok", "ok", "drop", "ok"])

    def test_fedmsg_without_signatures(self):
        body = {"topic": "org.example.a", "msg": {"x": 1}, "msg_id": "2026-1", "i": 1}
        sent = messages("org.example.a")
        sent += [["org.example.a", json.dumps(body)], ["org.example.other", json.dumps(body)]]
        end = json.dumps({"topic": "org.example.a", "msg": "end"})
        outcomes, log = self.compare("Unchecked", [*sent, ["org.example.a", end]], FEDMSG)
        self.assertEqual(set(outcomes), {("ok", None)})
        self.assertIn("a line of its own", log)

    def test_fedmsgs_relay(self):
        self.compare("Relay", [["org.a", "{}"], ["com.b", '{"a": 1}'], ["end", '"end"']], FEDMSG)


class Better(Bridged):
    """Where the bridge is meant to differ."""

    def test_a_message_that_matches_several_topics_comes_once(self):
        # Moksha's hub ends with its first "end", so it is the one before that it has had in full.
        sent = [["org.example.a", '"often"'], ["org.example.a", '"end"']]
        real, _ = self.in_the_real_hub("Overlapping", {}, sent, 3)
        bridged, _, _, _ = self.behind_the_bridge("Overlapping", {}, sent)
        self.assertEqual(real[1], real[0])
        self.assertEqual(bridged[0], real[0])
        self.assertEqual(len(bridged), 2)
        self.assertNotEqual(bridged[1], bridged[0])

    def test_an_error_may_be_dropped_as_moksha_does(self):
        for choice, expected in [("drop", "drop"), ("dead_letter", "dead_letter")]:
            with self.bridge("Hooked", "--on-error", choice) as child:
                child.hello()
                answer = child.feed("org.example", '"bad"')
                self.assertEqual(answer, (expected, "ValueError: it is bad"))

    def test_an_error_beneath_the_base_class_is_seen(self):
        with self.bridge("Beneath") as child:
            child.hello()
            answer = child.feed("org.example", '"bad"')
            self.assertEqual(answer, ("retry", "ValueError: it is bad"))

    def test_what_is_no_text_is_a_dead_letter(self):
        with self.bridge("Plain") as child:
            child.hello()
            self.assertEqual(child.feed("org.example.a", b"\xff")[0], "dead_letter")
            self.assertEqual(self.saw(), [])

    def test_what_fedmsg_refuses_is_dropped_with_the_reason(self):
        with self.bridge("Fedmsg") as child:
            child.hello(settings={**FEDMSG, "validate_signatures": True})
            unsigned = json.dumps({"topic": "org.example.a", "msg": {}})
            other = json.dumps({"topic": "org.example.b", "msg": {}})
            for body, reason in [
                (unsigned, "Failed to authn message."),
                (other, "Topic envelope mismatch."),
                ("no json", "Failed to authn message."),
            ]:
                answer = child.feed("org.example.a", body)
                self.assertEqual(answer, ("drop", f"invalid: RuntimeWarning: {reason}"))
            self.assertEqual(self.saw(), [])

    def test_it_is_stopped_at_the_end(self):
        with self.bridge("Stopping") as child:
            child.hello()
            child.feed("org.", "1")
            self.assertEqual(child.end(), 0)
            self.assertEqual(self.saw(), [1, "stopped"])

    def test_nothing_of_moksha_runs_beside_it(self):
        with self.bridge("Threads") as child:
            child.hello(settings={"moksha.workers_per_consumer": 5})
            child.feed("org.", "1")
            self.assertEqual(self.saw(), [["MainThread"]])

    def test_fedmsg_publishes_by_the_hub(self):
        with self.bridge("Publishing") as child:
            child.hello(settings={**FEDMSG, "zmq_enabled": False, "topic_prefix": "org.example"})
            self.assertEqual(child.feed("org.example.a", '{"x": 1}'), ("ok", None))
            [(topic, payload)] = child.published
            self.assertEqual(topic, "org.example.dev.legacy.again")
            self.assertEqual(json.loads(payload)["msg"], {"x": 1})
            self.assertEqual(json.loads(payload)["topic"], topic)

    def test_calls_that_wait_for_a_reactor_are_told_of(self):
        with self.bridge("Deferring") as child:
            child.hello()
            child.feed("org.", "1")
            child.feed("org.", "1")
            self.assertEqual(child.stderr().count("which does not run here"), 1)


class Signed(Bridged):
    """With signatures as fedmsg itself makes them."""

    def test_what_is_signed_is_taken_and_nothing_else(self):
        ours, theirs = self.signer("ours"), self.signer("theirs")
        config = {**FEDMSG, "validate_signatures": True, "ca_cert_location": str(ours / "ca.crt")}
        config["crl_location"] = None
        config["routing_policy"] = {"org.example.closed": ["somebody else"]}

        import fedmsg.crypto.x509_ng

        def signed(by, topic, msg="m"):
            made = {"topic": topic, "msg": msg, "i": 1, "timestamp": 1, "msg_id": "2026-1"}
            return fedmsg.crypto.x509_ng.sign(made, ssldir=str(by), certname="signer")

        good = signed(ours, "org.example.a", {"é": [1.0, 1e16, None]})
        bodies = [
            ("org.example.a", good, "ok"),
            ("org.example.b", good, "drop"),
            ("org.example.a", {**good, "i": 2}, "drop"),
            ("org.example.a", signed(theirs, "org.example.a"), "drop"),
            ("org.example.closed", signed(ours, "org.example.closed"), "drop"),
            ("org.example.a", {**good, "signature": None}, "drop"),
            ("org.example.a", {**good, "certificate": "%"}, "drop"),
            ("org.example.end", signed(ours, "org.example.end", "end"), "ok"),
        ]
        sent = [[topic, json.dumps(body)] for topic, body, _ in bodies]
        outcomes, _ = self.compare("Fedmsg", sent, config)
        self.assertEqual([result for result, _ in outcomes], [came for *_, came in bodies])

    def signer(self, name):
        """A directory with an authority and what it has certified."""
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        directory = self.directory / name
        directory.mkdir()
        pem = serialization.Encoding.PEM
        authority = rsa.generate_private_key(65537, 2048)
        signer = rsa.generate_private_key(65537, 2048)

        def certificate(common_name, key, is_authority):
            now = datetime.datetime.now(datetime.timezone.utc)

            def named(text):
                return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

            return (
                x509.CertificateBuilder()
                .subject_name(named(common_name))
                .issuer_name(named("authority"))
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=1))
                .add_extension(x509.BasicConstraints(is_authority, None), True)
                .sign(authority, hashes.SHA256())
                .public_bytes(pem)
            )

        (directory / "ca.crt").write_bytes(certificate("authority", authority, True))
        (directory / "signer.crt").write_bytes(certificate("signer", signer, False))
        (directory / "signer.key").write_bytes(
            signer.private_bytes(
                pem,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        return directory


class Configurations(Bridged):
    def test_a_directory_and_files_of_fedmsgs(self):
        enabled = self.directory / "conf"
        enabled.mkdir()
        (enabled / "a.py").write_text("config = {'endpoints': {}, 'legacy.fedmsg.enabled': False}")
        (enabled / "b.py").write_text("config = {'validate_signatures': False}")
        (enabled / "not.txt").write_text("nonsense")
        more = self.directory / "more.py"
        more.write_text("config = {'legacy.fedmsg.enabled': True}")
        with self.bridge("Fedmsg", "--config", enabled, more) as child:
            child.hello()
            self.assertEqual(child.feed("org.example.a", "{}"), ("ok", None))
        with self.bridge("Fedmsg", "--config", enabled) as child:
            child.hello()
            self.assertEqual(child.feed("org.example.a", "{}")[0], "halt")
            self.assertEqual(child.end(), 0)

    def test_where_fedmsg_hub_looks(self):
        found = self.directory / "fedmsg.d"
        found.mkdir()
        (found / "a.py").write_text(f"config = {FEDMSG!r}")
        with self.bridge("Fedmsg") as child:
            child.hello()
            self.assertEqual(child.feed("org.example.a", "{}"), ("ok", None))

    def test_an_ini_of_mokshas(self):
        text = "[app:main]\nmy.topic = org.\nmy.number = 7\n"
        (self.directory / "some.ini").write_text(text)
        with self.bridge("Configured", "--config", "some.ini") as child:
            child.hello()
            self.assertEqual(child.feed("org.example.a", "{}"), ("ok", None))
            self.assertEqual(self.saw()[0], [True, True, "7"])
        (self.directory / "development.ini").write_text(text)
        with self.bridge("Configured") as child:
            child.hello()
            self.assertEqual(child.feed("org.example.a", "{}"), ("ok", None))

    def test_settings_of_the_hub_come_last(self):
        (self.directory / "some.ini").write_text("[app:main]\nmy.topic = org.\nmy.number = 7\n")
        with self.bridge("Configured", "--config", "some.ini") as child:
            child.hello(settings={"my.number": 8})
            child.feed("org.", "1")
            self.assertEqual(self.saw()[0], [True, True, 8])

    def test_one_that_is_disabled_halts_and_says_why(self):
        with self.bridge("Fedmsg") as child:
            self.assertEqual(child.hello(), {"weir": 1, "batch_max": 1})
            result, reason = child.feed("org.example.a", "{}")
            self.assertEqual(result, "halt")
            self.assertIn("'legacy.fedmsg.enabled' is not set", reason)
            self.assertEqual(child.end(), 0)


class Refusals(Bridged):
    """What can't begin says why, and exits with 2."""

    def test_each_says_why(self):
        bad = self.directory / "bad.py"
        bad.write_text("config = nonsense")
        none = self.directory / "none.py"
        none.write_text("conf = {}")
        (self.directory / "empty").mkdir()
        (self.directory / "broken.py").write_text("import not_there")
        (self.directory / "wrong.py").write_text("1/0")
        for target, arguments, text in [
            ("legacy", [], "write module:Class"),
            ("legacy:", [], "write module:Class"),
            ("nowhere:Class", [], "has no module 'nowhere'"),
            ("legacy.deeper:Class", [], "has no module 'legacy.deeper'"),
            ("broken:Class", [], "needs a module that"),
            ("wrong:Class", [], "ZeroDivisionError"),
            ("legacy:Nobody", [], "has no 'Nobody'"),
            ("legacy:saw", [], "is no consumer"),
            ("legacy:NoConsumer", [], "does not derive from Moksha's class Consumer"),
            ("legacy:Failing", [], "OSError: the database is down"),
            ("legacy:Topicless", [], "subscribes to nothing"),
            ("legacy:Keyless", ["--config", none], "KeyError: 'config'"),
            ("legacy:Plain", ["--config", "/nowhere"], "no such file or directory"),
            ("legacy:Plain", ["--config", "empty"], "no .py file"),
            ("legacy:Plain", ["--config", bad], "'nonsense' is not defined"),
        ]:
            with self.subTest(target=target, arguments=arguments):
                with self.bridge(target, *arguments) as child:
                    self.assertIsNone(child.hello())
                    self.assertEqual(child.status(), 2)
                    self.assertIn(text, child.stderr())

    def test_a_class_of_fedmsg_needs_its_key(self):
        with self.bridge("Keyless") as child:
            self.assertIsNone(child.hello())
            self.assertIn("must declare a 'config_key'", child.stderr())

    def test_one_that_does_not_call_its_base_class(self):
        with self.bridge("Superless") as child:
            child.hello()
            result, reason = child.feed("org.", "{}")
            self.assertEqual(result, "halt")
            self.assertIn("super().__init__", reason)


if __name__ == "__main__":
    unittest.main()
