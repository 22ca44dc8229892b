"""A web server in the test's own process that serves a folder on loopback, with ranges, and fails when told to."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class ShardServer:
    """Serves the files of a folder.

    Attributes:
        url: of the folder.
        gets: how often each path was asked for in full, or in ranges.
        fail: called with method and path before each answer; what it returns is the answer's status, or "cut" for half
            of the file only, or None for a good answer.
        ranges: whether parts of files are given.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.gets: Counter[str] = Counter()
        self.fail: Callable[[str, str], int | str | None] = lambda method, path: None
        self.ranges = True


@contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    """A server of a folder, on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer("HEAD")

        def do_GET(self) -> None:
            self.answer("GET")

        def answer(self, method: str) -> None:
            path = urlsplit(self.path).path.lstrip("/")
            failure = server.fail(method, path)
            file = folder / path
            if isinstance(failure, int) or not file.is_file():
                self.send_response(failure if isinstance(failure, int) else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            start, end = 0, len(data)
            ranged = self.headers.get("Range") if server.ranges else None
            if ranged:
                first, last = ranged.removeprefix("bytes=").split("-")
                start = int(first) if first else end - int(last)
                end = min(end, int(last) + 1) if first and last else end
            if method == "GET":
                server.gets[path] += 1
            self.send_response(206 if ranged else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("ETag", f'"{len(data)}-{file.stat().st_mtime_ns}"')
            self.send_header("Accept-Ranges", "bytes" if server.ranges else "none")
            if ranged:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.end_headers()
            if method == "GET":
                cut = (end - start) // 2 if failure == "cut" else end - start
                self.wfile.write(data[start : start + cut])
                if failure == "cut":
                    self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = ShardServer(folder, f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
