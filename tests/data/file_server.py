"""A web server for tests: serves bytes by path, honours ranges, and can break off or answer errors."""

import contextlib
import http.server
import threading
from collections.abc import Iterator


class FileServer:
    """`files` {path: bytes}; `break_after` ends the next answers after so many bytes (one per entry)."""

    def __init__(self, address: str):
        self.address = address
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []
        self.errors: list[int] = []
        self.elsewhere: dict[str, str] = {}  # path → path that answers are sent on to
        self.facts: dict[str, dict[str, str]] = {}  # path → headers of the answer that sends on
        self.ranges = True
        self.requests: list[tuple[str, str]] = []

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


def _handler(server: "FileServer") -> type:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            wanted = self.headers.get("Range", "") if server.ranges else ""
            server.requests.append((self.path[1:], wanted))
            if self.path[1:] in server.elsewhere:
                self.send_response(302)
                self.send_header("Location", server.url(server.elsewhere[self.path[1:]]))
                for name, value in server.facts.get(self.path[1:], {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = server.files.get(self.path[1:])
            if server.errors or data is None:
                self.send_error(server.errors.pop(0) if server.errors else 404)
                return
            tag = f'"{hash(data)}"'
            changed = self.headers.get("If-Range", tag) != tag
            start = 0 if changed else int(wanted.removeprefix("bytes=").rstrip("-") or 0)
            if start and start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", tag)
            self.end_headers()
            if server.break_after:
                body = body[: server.break_after.pop(0)]
            self.wfile.write(body)

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[FileServer]:
    """A running server on a free local port."""
    server = FileServer("")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as web:
        server.address = f"http://127.0.0.1:{web.server_address[1]}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            web.shutdown()
            thread.join()
