"""What all pages share: Flower's own authentication, who may act, and how a page is shown and kept live."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler

from threadmill.dlq.desk import Desk
from threadmill.dlq.pages.errand import Errands, Refusal, outcome, run_in
from threadmill.dlq.pages.queries import Reader

P = ParamSpec("P")
T = TypeVar("T")

STATIC = str(Path(__file__).parent / "static")
# The script of a page that is open asks for what has changed, without the frame around it.
LIVE_HEADER = "X-Threadmill-Live"
# Only our own files run, and nobody may lay these pages under theirs.
POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)


@dataclass(frozen=True)
class Services:
    """What the pages stand on. readers: for what a page shows; errands: for what takes its time."""

    desk: Desk
    reader: Reader
    readers: ThreadPoolExecutor
    errands: Errands

    def close(self) -> None:
        """Lets go of the ledger. A job that is under way can be continued from anywhere."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.desk.close()
        self.reader.close()


class PageHandler(BaseHandler):
    """A page of ours. tab: which entry of the navigation it belongs to."""

    tab = "dead-letters"

    def initialize(self, services: Services) -> None:
        self.services = services

    def set_default_headers(self) -> None:
        # Flower opens itself to other origins where it asks nobody for a password; these pages act.
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        super().check_xsrf_cookie()
        # Flower spares requests without a session of its own; a browser also sends a password by itself.
        RequestHandler.check_xsrf_cookie(self)

    def options(self, *_: str, **__: str) -> None:
        raise HTTPError(405)

    @property
    def may_not_act(self) -> str | None:
        """Why nothing may be done here, only looked at; None where it may.

        Flower's own rule, and one exception: without a password it acts for nobody, unless
        FLOWER_UNAUTHENTICATED_API is set, but these pages do for the machine that they run on.
        """
        options = self.application.options
        if options.read_only:
            return "Flower is in read-only mode."
        if options.basic_auth or options.auth or self.unauthenticated_api:
            return None
        if _is_loopback(options.address) and _is_loopback(self.request.host_name):
            return None
        return "Flower asks nobody for a password: set FLOWER_BASIC_AUTH=user:password to act here."

    @property
    def actor(self) -> str:
        """Who acts, for the record of what was done."""
        user = self.current_user
        if isinstance(user, str):
            return user
        kind, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        if kind != "Basic" or not self.application.options.basic_auth:
            return "flower"
        return base64.b64decode(credentials).decode().partition(":")[0] or "flower"

    def given(self, name: str) -> str | None:
        """An argument of the request as it came; None where it is missing or empty."""
        value = self.get_argument(name, None, escape=False)
        return str(value) if value else None

    def asset(self, name: str) -> str:
        """Where a file of ours is found, under a name that changes with it."""
        return f"{self.reverse_url('asset', name)}?v={_digest(name)}"

    async def read(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a reading of the ledger returns. Raises Refusal."""
        return await run_in(self.services.readers, call, *args, **kwargs)

    async def carry(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What an act returns that may take its time. Raises Refusal."""
        return await outcome(self.services.errands.begin(call, *args, **kwargs))

    def show(self, body: str, title: str, **values: Any) -> None:
        """The page; for its own script only what stands within the frame."""
        values = {**values, "title": title, "asset": self.asset, "may_not_act": self.may_not_act}
        if self._is_live:
            self.finish(self.render_string(body, **values))
        else:
            self.render("page.html", body=body, tab=self.tab, values=values, **values)

    @property
    def _is_live(self) -> bool:
        return LIVE_HEADER in self.request.headers

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Words instead of what was asked for; never a traceback."""
        if status_code == 401:
            super().write_error(status_code, **kwargs)
            return
        if not hasattr(self, "_current_user"):
            self.current_user = None  # whoever was turned away is not asked again
        shown = _words_of(status_code, (kwargs.get("exc_info") or (None, None))[1])
        self.set_status(status_code)
        if self._is_live or self.request.method != "GET":
            self.finish({"message": shown})
        else:
            self.show("problem.html", "Problem", message=shown, status=status_code)


class ActHandler(PageHandler):
    """What the buttons of a page send: it answers with words, and the page then shows what has changed."""

    def prepare(self) -> None:
        if self.get_current_user() is None:
            raise Refusal(403, "Log in first.")
        if self.may_not_act:
            raise Refusal(403, self.may_not_act)

    def tell(self, message: str, **more: str) -> None:
        """The answer. more: `html` that the page is to show, and `into` which of its places."""
        self.finish({"message": message, **more})


def _words_of(status: int, error: BaseException | None) -> str:
    if isinstance(error, Refusal):
        return error.words
    if status == 404:
        return "There is no such page."
    if isinstance(error, HTTPError) and status < 500:
        return str(error.log_message or error.reason or f"Refused with status {status}.")
    return "This could not be done; Flower's log says why."


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((Path(STATIC) / name).read_bytes()).hexdigest()[:12]
