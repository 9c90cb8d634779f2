"""A webhook is signed, tried again where that may help, and goes nowhere else."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from threadmill.core.errors import InvalidOption, SettingsInvalid
from threadmill.dlq import webhook as module
from threadmill.dlq.alarm import NEW_GROUP, Alarm
from threadmill.dlq.webhook import Webhook, signature_headers, signing_key

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
ALARM = Alarm(NEW_GROUP, datetime.datetime.now(datetime.UTC), {"group": "f"})


class Receiver(http.server.HTTPServer):
    """Answers with these statuses, one after the other, and then with 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.received: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=b"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append((self.path, headers, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def hook(url: str, **options: Any) -> Webhook:
    return Webhook(url, SECRET, **{"delay": 0.001, **options})


def test_the_receiver_can_verify_what_it_gets(receiver: Receiver) -> None:
    assert hook(receiver.url).tell(ALARM)

    ((path, headers, body),) = receiver.received
    assert path == "/hook?a=b"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == ALARM.to_dict()
    assert headers["webhook-id"] == ALARM.id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_another_body_id_or_time_has_another_signature() -> None:
    signatures = {
        signature_headers(KEY, *what)["webhook-signature"]
        for what in (("a", 1, b"{}"), ("b", 1, b"{}"), ("a", 2, b"{}"), ("a", 1, b"[]"))
    }
    assert len(signatures) == 4


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again_under_the_same_id(receiver: Receiver, status: int) -> None:
    receiver.statuses = [status, status]
    assert hook(receiver.url).tell(ALARM)
    assert [headers["webhook-id"] for _, headers, _ in receiver.received] == [ALARM.id] * 3


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301, 302, 307, 308])
def test_what_does_not_pass_is_not_tried_again_and_no_redirect_is_followed(
    receiver: Receiver, status: int
) -> None:
    receiver.statuses = [status]
    assert not hook(receiver.url).tell(ALARM)
    assert len(receiver.received) == 1


def test_the_tries_are_bounded(receiver: Receiver) -> None:
    receiver.statuses = [500] * 9
    assert not hook(receiver.url, tries=4).tell(ALARM)
    assert len(receiver.received) == 4


def test_a_receiver_that_is_not_there_is_no_error_of_the_watch() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    assert not hook(url, tries=3).tell(ALARM)


def test_a_watch_that_is_stopped_does_not_try_again() -> None:
    stopping = threading.Event()
    stopping.set()
    started = time.monotonic()
    assert not hook("http://127.0.0.1:9/", delay=60, stopping=stopping).tell(ALARM)
    assert time.monotonic() - started < 5


def test_a_receiver_that_answers_byte_by_byte_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRY_SECONDS", 0.5)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    while not done.wait(0.05):
                        connection.sendall(b"H")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        assert not hook(f"http://127.0.0.1:{server.getsockname()[1]}/", tries=1).tell(ALARM)
        assert time.monotonic() - started < 4
        done.set()
        thread.join()


def test_no_proxy_is_taken_from_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hook(receiver.url).tell(ALARM)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "http://127.0.0.1.example.org/",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https://user:password@example.org/",
        "https://example.org:port/",
        "https://example.org/a b",
        "https://example.org/\r\nhost: other",
        "hook",
        "",
    ],
)
def test_other_urls_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidOption) as refused:
        Webhook(url, SECRET)
    assert "password" not in str(refused.value) or "user name" in str(refused.value)
    assert "user:" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://example.org", "http://localhost:1/", "http://[::1]:1/"])
def test_https_and_this_machine_are_taken(url: str) -> None:
    Webhook(url, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", "x" * 200])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        signing_key(secret)
    assert not secret.removeprefix("whsec_") or secret.removeprefix("whsec_") not in str(refused.value)


def test_the_secret_may_come_without_its_prefix() -> None:
    assert signing_key(SECRET) == signing_key(SECRET.removeprefix("whsec_")) == KEY
