"""Moksha's own hub with one consumer, on a bus of its own.

    python real_hub.py Class < JSON of {"config": {}, "subscriptions": 1, "messages": [["t", "x"]]}

Publishes the messages and prints what the consumer published, until that is "end".
"""

import json
import os
import sys
import time
import traceback

import zmq
from moksha.hub.hub import CentralMokshaHub

import legacy

PATIENCE = 60


def main():
    told = json.load(sys.stdin)
    context = zmq.Context()
    bus = context.socket(zmq.XPUB)
    bus.setsockopt(zmq.SNDHWM, 0)
    # In the directory that the test made for this.
    bus.bind("ipc://bus")
    out = context.socket(zmq.SUB)
    out.setsockopt(zmq.SUBSCRIBE, b"")
    config = {
        "zmq_enabled": True,
        "zmq_subscribe_endpoints": "ipc://bus",
        "zmq_publish_endpoints": "ipc://out",
        **told["config"],
    }
    hub = CentralMokshaHub(config, [getattr(legacy, sys.argv[1])], [])
    assert len(hub.consumers) == 1, "it was not loaded"
    out.connect("ipc://out")

    from moksha.hub.reactor import reactor

    reactor.startRunning(False)  # and with it the threads of the consumers
    deadline = time.monotonic() + PATIENCE

    # Both ways are open when each has carried something.
    while not out.poll(0):
        assert time.monotonic() < deadline
        hub.send_message("probe", "probe")
        reactor.iterate(0.01)
    subscriptions = told["subscriptions"]
    while subscriptions:
        assert time.monotonic() < deadline
        reactor.iterate(0.01)
        while bus.poll(0):
            bus.recv()
            subscriptions -= 1

    for topic, text in told["messages"]:
        bus.send_multipart([topic.encode(), text.encode()])
    sent = []
    while not sent or sent[-1][0] != "end":
        assert time.monotonic() < deadline, sent
        reactor.iterate(0.01)
        while out.poll(0):
            topic, body = out.recv_multipart()
            if topic != b"probe":
                sent.append([topic.decode(), body.decode("latin-1")])
    print(json.dumps(sent), flush=True)


if __name__ == "__main__":
    status = 1
    try:
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # the reactor's threads still wait for messages
