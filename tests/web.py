"""A web server of a directory that fails as it is told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class Web:
    """Serves `root`. `faults[path]` are the ways in which the next answers fail, first to last; "*" is of any path.

    `500`, `404`, `403`, `429`: that status; "stall": no answer; "stall inside": half of the body, and then nothing;
    "cut": half of the body and the connection's end; "slow": a byte at a time for ever; "no range": the whole file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        """GET requests by path."""
        self.tells_etag = True
        self.num_waited_for = 0
        """Stalls that no client ended in time."""
        self.ending = threading.Event()
        self._lock = threading.Lock()

    def stall(self) -> None:
        if not self.ending.wait(8):
            self.num_waited_for += 1

    def next_fault(self, path: str) -> Any:
        with self._lock:
            self.asked[path] += 1
            faults = self.faults.get(path) or self.faults.get("*") or []
            return faults.pop(0) if faults else None


@contextmanager
def web(root: Path) -> Iterator[tuple[Web, str]]:
    """The server and its URL."""
    site = Web(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            fault = site.next_fault(path) if with_body else None
            file = site.root / path.lstrip("/")
            if isinstance(fault, int) or not file.is_file():
                self.send_response(fault or 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "stall":
                site.stall()
                self.close_connection = True
                return
            body, status = file.read_bytes(), 200
            asked = self.headers.get("Range")
            if asked and fault != "no range":
                first, _, last = asked.removeprefix("bytes=").partition("-")
                end = min(int(last) + 1 if last else len(body), len(body))
                body, status = body[int(first) : end], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if site.tells_etag:
                self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
            self.send_header("Last-Modified", formatdate(file.stat().st_mtime, usegmt=True))
            self.end_headers()
            if not with_body:
                return
            if fault in ("cut", "stall inside"):
                body = body[: len(body) // 2]
            if fault == "slow":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if site.ending.wait(0.05):
                        break
                self.close_connection = True
                return
            self.wfile.write(body)
            self.wfile.flush()
            if fault == "stall inside":
                site.stall()
            if fault in ("cut", "stall inside"):
                self.close_connection = True

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that gives up is what is tested."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="web", daemon=True)
        thread.start()
        try:
            yield site, f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            site.ending.set()
            server.shutdown()
            thread.join()
