"""A receiver of webhooks that does what the path tells it, and checks signatures.

/ok takes it; /status/N answers N, with `?after=S` as Retry-After; /hang never answers; /lose takes
it and answers nothing; /redirect answers 307; /endless answers without end; /drip answers a byte a
second; /garbage answers no HTTP. With `?ID` as the query, whatever it is, paths are told apart.
While DIR/mode is `slow` it waits 20 ms. What came is a line of JSON in DIR/hooks.
"""

import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

directory, port, secret = sys.argv[1], int(sys.argv[2]), sys.argv[3]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        stamp = self.headers.get("X-Weir-Timestamp", "")
        own = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        given = self.headers.get("X-Weir-Signature", "")
        fresh = stamp.isdigit() and abs(time.time() - int(stamp)) < 300
        line = {
            "path": self.path,
            "signed": fresh and hmac.compare_digest(given, "sha256=" + own),
            "body": json.loads(body),
            "time": time.time(),
        }
        if os.path.exists(os.path.join(directory, "mode")):
            time.sleep(0.02)
        url = urlsplit(self.path)
        if url.path == "/hang":
            time.sleep(3600)
        with open(os.path.join(directory, "hooks"), "a") as hooks:
            hooks.write(json.dumps(line) + "\n")
        if url.path == "/lose":
            self.close_connection = True
            return
        if url.path == "/garbage":
            self.wfile.write(b"what?\r\n\r\n" * 100)
            self.close_connection = True
            return
        if url.path in ("/endless", "/drip"):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" if url.path == "/drip" else b"x" * 65536)
                    self.wfile.flush()
                    time.sleep(1 if url.path == "/drip" else 0)
            except OSError:
                self.close_connection = True
                return
        status = int(url.path.rpartition("/")[2]) if url.path.startswith("/status/") else 204
        if url.path == "/redirect":
            status = 307
        self.send_response(status)
        if status == 307:
            self.send_header("Location", "/ok")
        after = parse_qs(url.query).get("after")
        if after:
            self.send_header("Retry-After", after[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


ThreadingHTTPServer.allow_reuse_address = True
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
