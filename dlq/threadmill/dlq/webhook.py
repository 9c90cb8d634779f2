"""Posts alarms to a URL, signed as the Standard Webhooks specification has it, and tried again.

What is signed is `id.timestamp.body`, by HMAC-SHA256 (the specification's `v1`); the id is the alarm's,
whatever the try, and the timestamp the try's. Over http.client: it follows no redirect, speaks HTTP and
nothing else, and takes no proxy from the environment, all of which urllib would do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

import structlog
import tenacity

from threadmill.core.errors import InvalidOption, SettingsInvalid
from threadmill.dlq.alarm import Alarm

TRIES = 6
# Between two tries, in seconds: doubling, with full jitter.
DELAY, DELAY_MAX = 1.0, 30.0
# For the connection and each answer, and for one try in all, in seconds.
ANSWER_SECONDS, TRY_SECONDS = 5.0, 15.0
# The specification's own bounds of a secret, in bytes.
SECRET_BYTES = range(24, 65)

_log = structlog.get_logger("threadmill.watch")


class _Refused(Exception):
    """The receiver answered with another status than 2xx; `retry`: that may pass."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.retry = status in (408, 429) or status >= 500

    def __str__(self) -> str:
        return f"answered with status {self.args[0]}"


class Webhook:
    """A URL that alarms are posted to, one after the other."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        stopping: threading.Event | None = None,
        tries: int = TRIES,
        delay: float = DELAY,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """stopping: once it is set, nothing is tried again. context: for TLS; None trusts the system's
        authorities. Raises InvalidOption for the URL and SettingsInvalid for the secret."""
        self._url = _checked(url)
        self._key = signing_key(secret)
        stop = stopping or threading.Event()
        self._context = context
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_any(tenacity.stop_after_attempt(tries), tenacity.stop_when_event_set(stop)),
            wait=tenacity.wait_random_exponential(multiplier=delay, max=DELAY_MAX),
            retry=tenacity.retry_if_exception(_may_pass),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )

    def tell(self, alarm: Alarm) -> bool:
        """Posts the alarm; False, and a line in the log, where the receiver did not take it."""
        try:
            self._retrying(self._post, alarm.id, alarm.to_json().encode())
        except (_Refused, OSError, http.client.HTTPException) as error:
            _log.error(
                "watch.webhook_failed",
                host=self._url.hostname,  # no more of the URL: its path or query may be a secret
                alarm=alarm.id,
                type=alarm.type,
                error=str(error) if isinstance(error, _Refused) else type(error).__name__,
            )
            return False
        return True

    def _post(self, alarm_id: str, body: bytes) -> None:
        headers = {
            "content-type": "application/json",
            "user-agent": "threadmill",
            **signature_headers(self._key, alarm_id, int(time.time()), body),
        }
        connection = self._connection()
        watch = threading.Timer(TRY_SECONDS, _break_off, [connection])
        watch.daemon = True
        watch.start()
        try:
            path = self._url.path or "/"
            connection.request(
                "POST", f"{path}?{self._url.query}" if self._url.query else path, body, headers
            )
            status = connection.getresponse().status
        finally:
            watch.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise _Refused(status)

    def _connection(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, self._url.port, timeout=ANSWER_SECONDS)
        return http.client.HTTPSConnection(
            host,
            self._url.port,
            timeout=ANSWER_SECONDS,
            context=self._context or ssl.create_default_context(),
        )


def signing_key(secret: str) -> bytes:
    """The key in a secret such as `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`. Raises SettingsInvalid."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in SECRET_BYTES:
        raise SettingsInvalid(
            [f"webhook_secret: must be whsec_ and {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} bytes in base64"]
        )
    return key


def signature_headers(key: bytes, alarm_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers by which the receiver knows that the body is ours and recent."""
    signed = b"%s.%d.%s" % (alarm_id.encode(), timestamp, body)
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return {
        "webhook-id": alarm_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _Refused):
        return error.retry
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    return isinstance(error, (OSError, http.client.HTTPException))


def _checked(url: str) -> SplitResult:
    """The URL's parts. Raises InvalidOption; its text may be a secret, and is not shown."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise InvalidOption("webhook", "…", "is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidOption("webhook", "…", "must be a URL such as https://host/path")
    if parts.username is not None or parts.password is not None:
        raise InvalidOption("webhook", "…", "must hold no user name or password")
    if any(character <= " " or character == "\x7f" or not character.isascii() for character in url):
        raise InvalidOption("webhook", "…", "must hold no blank, control or non-ASCII character")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InvalidOption("webhook", f"http://{host}/…", "must be https, except to this machine itself")
    return parts


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _break_off(connection: Any) -> None:
    """Ends a try that has taken too long: a receiver that answers byte by byte is in time with each."""
    sock = connection.sock
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
