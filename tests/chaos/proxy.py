"""A TCP proxy on loopback that can cut, slow down and silence what passes through it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CHUNK = 65_536
TURNS = 5  # of the loop


class Proxies:
    """The event loop, in a thread of its own, on which any number of proxies run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._proxies: list[Proxy] = []

    def to(self, upstream: Path) -> Proxy:
        """A new proxy in front of the server that listens on this unix socket."""
        proxy = Proxy(self, upstream)
        self._proxies.append(proxy)
        return proxy

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns, run on the loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(10)


class Proxy:
    """One address before one server. Its methods may be called from any thread, and take effect at once."""

    def __init__(self, proxies: Proxies, upstream: Path) -> None:
        self._proxies = proxies
        self._upstream = upstream
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._delay = 0.0
        # Bound and never listening: it keeps the port ours while new connections are refused.
        self._keeper = _bound(0)
        self.port: int = self._keeper.getsockname()[1]
        proxies.call(self._listen())

    def cut(self) -> None:
        """Closes every connection and refuses new ones, until `heal`."""
        self._proxies.call(self._cut(refuse=True))

    def cut_connections(self) -> None:
        """Closes every connection; new ones are served."""
        self._proxies.call(self._cut(refuse=False))

    def silence(self) -> None:
        """Accepts, and passes nothing on, either way, until `heal`: what was sent meanwhile then arrives."""
        self._proxies.call(self._set(flows=False))

    def slow(self, seconds: float) -> None:
        """Everything takes so much longer on its way, each way, until `heal`."""
        self._proxies.call(self._set(delay=seconds))

    def heal(self) -> None:
        """Passes everything on again."""
        self._proxies.call(self._set())
        self._proxies.call(self._listen())

    def close(self) -> None:
        self._proxies.call(self._cut(refuse=True))
        self._keeper.close()

    async def _set(self, *, flows: bool = True, delay: float = 0.0) -> None:
        self._delay = delay
        if flows:
            self._flows.set()
        else:
            self._flows.clear()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, sock=_bound(self.port))

    async def _cut(self, *, refuse: bool) -> None:
        if refuse and self._server is not None:
            server, self._server = self._server, None
            # Python leaves a connection open for good if its server is closed between the two steps in which
            # it is taken: so those that are being taken reach `_accept` first.
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            for _ in range(TURNS):
                await asyncio.sleep(0)
            server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        upstream: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            await self._flows.wait()
            answers, upstream = await asyncio.open_unix_connection(str(self._upstream))
            pumps = [
                asyncio.create_task(self._pump(reader, upstream)),
                asyncio.create_task(self._pump(answers, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, or the connection is cut: both ends are closed below
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()
            with suppress(asyncio.CancelledError):  # it is cut while it ends by itself
                await asyncio.gather(*pumps, return_exceptions=True)
            self._connections.discard(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                sink.write(chunk)
                await sink.drain()


def _bound(port: int) -> socket.socket:
    """A socket bound to a port of loopback, any if 0, which others of this process may share."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
