"""A service that the demo's graph depends on, and that is down for a while."""

from __future__ import annotations

import json
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import unquote

DOCUMENTATION = "https://docs.python.org/3/library/{module}.html"


class CatalogueState(NamedTuple):
    """How the service fares. down_for: seconds until it answers again; 0 while it does."""

    answered: int
    refused: int
    down_for: float


class CatalogueService:
    """A context in which `GET {url}/modules/{name}` is answered, on a port of loopback that was free.

    When it has answered `up_for` requests, it refuses every request with 503 for `outage` seconds, once.
    Counted by requests and not by time, so that the outage hits the same part of the work on a slow machine.
    """

    def __init__(self, *, up_for: int, outage: float) -> None:
        self._up_for, self._outage = up_for, outage
        self._lock = threading.Lock()
        self._answered = self._refused = 0
        self._down_until: float | None = None
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> CatalogueService:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def state(self) -> CatalogueState:
        """What was answered and refused so far."""
        with self._lock:
            return CatalogueState(self._answered, self._refused, self._down_for())

    def admit(self) -> bool:
        """Whether the request that just came in is to be answered."""
        with self._lock:
            if self._answered >= self._up_for and self._down_until is None:
                self._down_until = time.monotonic() + self._outage
            if self._down_for() > 0:
                self._refused += 1
                return False
            self._answered += 1
            return True

    def _down_for(self) -> float:
        return max(0.0, (self._down_until or 0.0) - time.monotonic())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A whole fleet may call at once; with the default of 5, the kernel drops what does not fit.
    request_queue_size = 256

    def __init__(self, catalogue: CatalogueService) -> None:
        self.catalogue = catalogue
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of callers that hang up, as a worker does that is stopped."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        module = unquote(self.path.removeprefix("/modules/"))
        if not self.server.catalogue.admit():
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the catalogue is down"})
        else:
            self._send(HTTPStatus.OK, {"documentation": DOCUMENTATION.format(module=module)})

    def _send(self, status: HTTPStatus, document: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Says nothing: the terminal belongs to the demo's view."""
