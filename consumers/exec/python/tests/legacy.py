"""Consumers as people have them: written against moksha.hub 1.5.17 and fedmsg 1.1.7.

Each writes what it sees into the file that SEEN names, and ends with the body "end". Nothing here
knows of weir; the tests run each of them in the real hub and behind the bridge.
"""

import json
import os
import threading

from fedmsg.consumers import FedmsgConsumer
from moksha.hub.api.consumer import Consumer


def saw(what):
    with open(os.environ["SEEN"], "a") as file:
        file.write(json.dumps(what) + "\n")


class Seeing:
    def consume(self, message):
        saw({"type": type(message).__name__, "message": message})
        if isinstance(message["body"], dict) and message["body"].get("msg") == "end":
            self.hub.send_message("end", "end")
        if message["body"] == "end":
            self.hub.send_message("end", "end")


class Plain(Seeing, Consumer):
    topic = "org.example.*"


class Everything(Seeing, Consumer):
    topic = ""


class Overlapping(Seeing, Consumer):
    topic = ["org.*", "org.example.*", "org.example.a"]


class Raw(Consumer):
    """Gets Moksha's object for a message of ZeroMQ as it is."""

    topic = "org.example"
    jsonify = False

    def consume(self, message):
        saw([type(message).__module__, type(message).__name__, message.topic, message.body])
        saw([repr(message), message.__json__()])
        if message.body == '"end"':
            self.send_message("end", "end")


class Configured(Seeing, Consumer):
    """Finds its topic out when it is made, and keeps a state."""

    def __init__(self, hub):
        self.topic = [hub.config["my.topic"], "end"]
        self.count = 0
        super(Configured, self).__init__(hub)
        saw([isinstance(self.hub.config, dict), self._initialized, self.hub.config["my.number"]])

    def consume(self, message):
        self.count += 1
        saw(self.count)
        super(Configured, self).consume(message)


class Sending(Consumer):
    topic = ["org.example.one", "org.example.two", "org.example.end"]

    def consume(self, message):
        body = message["body"]
        self.send_message("out.text", "text é")
        self.send_message("out.dict", {"b": [1, None, "é"], "a": body})
        self.send_message(["out.list.1", "out.list.2"], [])
        self.send_message(b"out.bytes", 1.5)
        self.hub.send_message("out.raw", "raw é", jsonify=False)
        self.hub.send_message("out.raw", b"\xff\x00", jsonify=False)
        self.send_message("out.never", object())
        for wrong in (7, None, {}):
            try:
                self.hub.send_message("out.never", wrong, jsonify=False)
            except Exception as error:
                saw(type(error).__name__)
        if body == "end":
            self.send_message("end", "end")


class Hooked(Seeing, Consumer):
    topic = "org.example"

    def validate(self, message):
        if message["body"] == "invalid":
            raise ValueError("it is invalid")
        saw(["validate", message["body"]])

    def pre_consume(self, message):
        saw(["pre_consume", message["body"]])
        raise RuntimeError("this is only logged")

    def consume(self, message):
        if message["body"] == "bad":
            saw("bad")
            raise ValueError("it is bad")
        message["body"] = [message["body"]]
        super(Hooked, self).consume(message)
        if message["body"] == ["end"]:
            self.hub.send_message("end", "end")

    def post_consume(self, message):
        saw(["post_consume", message["body"]])
        raise RuntimeError("this is only logged")


class Beneath(Consumer):
    """Takes its messages where the base class does."""

    topic = "org.example"

    def _consume(self, message):
        saw(message)
        if message["body"] == "bad":
            raise ValueError("it is bad")
        if message["body"] == "end":
            self.hub.send_message("end", "end")


class Direct(Consumer):
    """Subscribes by itself as well, and to something else."""

    topic = "org.example"

    def __init__(self, hub):
        super(Direct, self).__init__(hub)
        hub.subscribe("net.*", self.other)

    def other(self, message):
        saw(["other", message.topic, message.body])
        if message.topic == "net.stop":
            self.hub.unsubscribe(self.other)

    def consume(self, message):
        saw(["consume", message])
        if message["body"] == "end":
            self.hub.send_message("end", "end")


class Threads(Consumer):
    topic = ""

    def consume(self, message):
        saw([thread.name for thread in threading.enumerate()])


class Stopping(Consumer):
    topic = "org."

    def consume(self, message):
        saw(message["body"])

    def stop(self):
        super(Stopping, self).stop()
        saw("stopped")


class Fedmsg(Seeing, FedmsgConsumer):
    topic = "org.example.*"
    config_key = "legacy.fedmsg.enabled"

    def consume(self, message):
        self.log.info("a line of its own")
        super(Fedmsg, self).consume(message)


class Unchecked(Fedmsg):
    validate_signatures = False


class Relay(FedmsgConsumer):
    """As fedmsg's own relay."""

    topic = "*"
    config_key = "legacy.fedmsg.enabled"
    validate_signatures = False

    def consume(self, message):
        self.hub.send_message(topic=message["topic"] + ".relayed", message=message["body"])
        if message["body"]["msg"] == "end":
            self.hub.send_message("end", "end")


class Publishing(FedmsgConsumer):
    """Publishes by fedmsg itself, which asks the hub when ZeroMQ is not enabled."""

    topic = "org.example.*"
    config_key = "legacy.fedmsg.enabled"
    validate_signatures = False

    def consume(self, message):
        import fedmsg

        fedmsg.publish(topic="again", modname="legacy", msg=message["body"]["msg"])


class Keyless(FedmsgConsumer):
    topic = "org."


class Failing(Consumer):
    topic = "org."

    def __init__(self, hub):
        super(Failing, self).__init__(hub)
        raise OSError("the database is down")


class Topicless(Consumer):
    topic = []


class Superless(Consumer):
    topic = "org."

    def __init__(self, hub):
        pass


class Deferring(Consumer):
    topic = "org."

    def consume(self, message):
        from twisted.internet import reactor

        reactor.callLater(1, print, "never")


class NoConsumer:
    topic = "org."

    def consume(self, message):
        pass
