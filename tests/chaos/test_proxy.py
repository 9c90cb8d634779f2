"""The proxy does to a connection what the harness believes that it does."""

from __future__ import annotations

import gc
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.chaos.proxy import Proxies, Proxy


@pytest.fixture
def echo() -> Iterator[Path]:
    """A server on a unix socket that answers with what it was sent."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "echo.sock"
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=[listener])
        thread.start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _serve(listener: socket.socket) -> None:
    answering: list[threading.Thread] = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            break
        answering.append(threading.Thread(target=_answer, args=[connection]))
        answering[-1].start()
    for thread in answering:
        thread.join()


def _answer(connection: socket.socket) -> None:
    with connection:
        while chunk := connection.recv(100):
            connection.sendall(chunk)


@pytest.fixture
def proxy(echo: Path) -> Iterator[Proxy]:
    proxies = Proxies()
    yield proxies.to(echo)
    proxies.close()


def call(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def asks(connection: socket.socket, text: bytes = b"hello") -> bytes:
    connection.sendall(text)
    return connection.recv(100)


def test_it_passes_on_both_ways(proxy: Proxy) -> None:
    with call(proxy) as connection:
        assert asks(connection) == b"hello"


def test_a_cut_closes_what_is_open_and_refuses_what_comes(proxy: Proxy) -> None:
    with call(proxy) as connection:
        assert asks(connection) == b"hello"
        proxy.cut()
        assert connection.recv(100) == b""
    with pytest.raises(ConnectionRefusedError):
        call(proxy)

    proxy.heal()
    with call(proxy) as connection:
        assert asks(connection) == b"hello"


def test_cut_connections_leaves_the_door_open(proxy: Proxy) -> None:
    with call(proxy) as connection, call(proxy) as another:
        assert asks(connection) == b"hello"
        proxy.cut_connections()
        assert connection.recv(100) == b""
        assert another.recv(100) == b""
    with call(proxy) as connection:
        assert asks(connection) == b"hello"


def test_silence_says_nothing_and_what_was_said_arrives_afterwards(proxy: Proxy) -> None:
    with call(proxy) as before:
        assert asks(before) == b"hello"
        proxy.silence()
        with call(proxy) as during:
            for connection in (before, during):
                connection.sendall(b"anybody?")
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    connection.recv(100)
                connection.settimeout(5)
            proxy.heal()
            assert [before.recv(100), during.recv(100)] == [b"anybody?", b"anybody?"]


def test_slow_adds_its_delay_each_way(proxy: Proxy) -> None:
    with call(proxy) as connection:
        assert asks(connection) == b"hello"
        proxy.slow(0.2)
        started = time.monotonic()
        assert asks(connection) == b"hello"
        assert time.monotonic() - started >= 0.4


def test_what_connects_while_it_closes_is_closed_too(tmp_path: Path) -> None:
    for _ in range(30):
        proxies = Proxies()
        proxy = proxies.to(tmp_path / "nobody")
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
            proxies.close()
    gc.collect()  # what is left open is found here, and fails the test
