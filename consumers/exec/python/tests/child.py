"""A program that is run as the hub runs it: the other side of its pipes."""

import base64
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import textwrap

SOURCES = str(pathlib.Path(__file__).parent.parent / "src")

# Long enough for the slowest machine; only a test that fails waits for it.
PATIENCE = 60


class Child:
    """Use it in a `with`; the program is gone behind that."""

    def __init__(self, arguments, env=None, cwd=None, path=()):
        paths = [SOURCES, *map(str, path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})}
        self._stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            cwd=cwd,
        )
        self._read = b""
        self._id = 0
        self.published = []

    @classmethod
    def of(cls, script):
        """Runs the text of a program, that begins with all names of the package."""
        script = "from weir_consumer import *\n" + textwrap.dedent(script)
        return cls(["-c", script])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # what it did not read
        self.process.stdout.close()
        self._stderr.close()

    def write(self, data):
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended; the test sees that when it reads

    def send(self, *told):
        self.write(b"".join(json.dumps(one).encode() + b"\n" for one in told))

    def line(self):
        """The next line of the child, or None at its end."""
        while b"\n" not in self._read:
            poll = select.poll()
            poll.register(self.process.stdout, select.POLLIN)
            assert poll.poll(PATIENCE * 1000), f"it says nothing; stderr: {self.stderr()}"
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                assert not self._read, f"half a line: {self._read!r}"
                return None
            self._read += chunk
        line, self._read = self._read.split(b"\n", 1)
        return json.loads(line.decode("utf-8"))

    def answer(self):
        """The next line that is no message to be published; those are kept."""
        while True:
            line = self.line()
            if line is None or "publish" not in line:
                return line
            told = line["publish"]
            if "payload" in told:
                payload = told["payload"].encode("utf-8")
            else:
                payload = base64.b64decode(told["payload_base64"])
            self.published.append((told["topic"], payload))

    def hello(self, **told):
        """The handshake; answers the child's first line, which nothing may come before."""
        first = {"weir": 1, "hub": "hub", "consumer": "name", "batch_max": 1, "settings": {}}
        self.send({**first, **told})
        return self.line()

    def message(self, topic, payload, **more):
        """The line of a message."""
        self._id += 1
        told = {"id": self._id, "topic": topic, "received": 1700000000.123456789}
        if isinstance(payload, bytes):
            told["payload_base64"] = base64.b64encode(payload).decode()
        else:
            told["payload"] = payload
        return {**told, "seq": self._id, "replayed": False, **more}

    def feed(self, topic, payload, **more):
        """Delivers one message; answers (result, reason)."""
        message = self.message(topic, payload, **more)
        self.send(message)
        answer = self.answer()
        assert answer is not None, f"it ended; stderr: {self.stderr()}"
        assert answer["id"] == message["id"], answer
        return answer["result"], answer.get("reason")

    def end(self):
        """Closes its input; answers the exit status, after nothing more was said."""
        self.process.stdin.close()
        assert self.answer() is None
        return self.status()

    def status(self):
        return self.process.wait(PATIENCE)

    def stderr(self):
        self._stderr.seek(0)
        return self._stderr.read().decode("utf-8", "replace")
