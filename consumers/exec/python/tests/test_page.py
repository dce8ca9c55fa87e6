"""What docs/kinds/python.md shows works as it stands there."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

from child import SOURCES, Child

PAGE = pathlib.Path(__file__).parents[4] / "docs" / "kinds" / "python.md"


class Page(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        blocks = PAGE.read_text("utf-8").split("```python\n")[1:]
        blocks = [block.split("```")[0] for block in blocks]
        self.function, self.tally, self.test, _ = blocks
        (self.directory / "worker.py").write_text(self.function)

    def test_the_function(self):
        with Child(["worker.py"], cwd=self.directory) as child:
            child.hello(settings={"topic": "out"})
            self.assertEqual(child.feed("t", '{"state": "begun"}'), ("drop", "not done yet"))
            self.assertEqual(child.feed("t", "{}"), ("retry", "KeyError: 'state'"))
            self.assertEqual(child.feed("t", "{")[0], "dead_letter")
            self.assertEqual(child.feed("t", '{"name": "x", "state": "done"}'), ("ok", None))
            self.assertEqual(child.published, [("out", b'{"name": "x"}')])
            self.assertEqual(child.end(), 0)
            self.assertIn("x is done", child.stderr())

    def test_the_class(self):
        with Child(["-c", self.tally]) as child:
            child.hello(settings={"topic": "out"})
            child.feed("t", "x")
            child.send({"tick": True})
            self.assertEqual(child.answer()["tick"], "ok")
            self.assertEqual(child.end(), 0)
            self.assertEqual([topic for topic, _ in child.published], ["out", "out"])
        with Child(["-c", self.tally]) as child:
            child.hello()
            self.assertEqual(child.feed("t", "x"), ("halt", "settings.topic is missing"))

    def test_the_test(self):
        done = subprocess.run(
            [sys.executable, "-c", self.test],
            env={"PYTHONPATH": f"{SOURCES}:{self.directory}"},
            check=False,
            stderr=subprocess.PIPE,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())


if __name__ == "__main__":
    unittest.main()
