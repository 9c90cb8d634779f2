"""The pages in Flower, without a Flower: its frame, words, errands, and who may act."""

from __future__ import annotations

import asyncio
import base64
import datetime
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from threadmill.core.errors import (
    DatabaseUnavailable,
    DeadLetterNotFound,
    InvalidOption,
    NotReplayable,
    SettingsInvalid,
    ThreadmillError,
)
from threadmill.dlq.pages import words
from threadmill.dlq.pages.errand import Errands, Refusal, outcome, run_in, status_of
from threadmill.dlq.pages.frame import FrameLoader
from threadmill.dlq.pages.handler import PageHandler

PARTS = SimpleNamespace(reverse_url=lambda name: f"/{name}")


def navigation(folder: Path, source: str) -> str:
    (folder / "navbar.html").write_text(source)
    template = FrameLoader(str(folder)).load("navbar.html")
    return template.generate(active_tab="threads", reverse_url=PARTS.reverse_url).decode()


def test_our_links_stand_at_the_end_of_flowers_first_list(tmp_path: Path) -> None:
    shown = navigation(tmp_path, "<ul><li>Tasks</li></ul><ul><li>Theme</li></ul>")
    tasks, dead_letters, theme = (shown.index(word) for word in ("Tasks", "Dead letters", "Theme"))
    assert tasks < dead_letters < theme
    assert 'href="/threads"\naria-current="page"' in shown


def test_our_links_are_there_whatever_flowers_navigation_is_made_of(tmp_path: Path) -> None:
    assert 'href="/tenants"' in navigation(tmp_path, "<p>Tasks</p>")


def test_a_template_of_ours_goes_before_flowers(tmp_path: Path) -> None:
    (tmp_path / "tenants.html").write_text("Flower's")
    (tmp_path / "workers.html").write_text("Flower's")
    loader = FrameLoader(str(tmp_path))
    assert loader.load("workers.html").generate() == b"Flower's"
    assert loader.load("tenants.html").code != loader.load("workers.html").code


def test_what_is_counted_up_to_a_bound_says_so() -> None:
    assert [words.count(999, 1000), words.count(1000, 1000), words.count(12345)] == [
        "999",
        "1,000+",
        "12,345",
    ]


def test_times_and_lengths_are_told_for_people() -> None:
    at = datetime.datetime(2026, 1, 2, 5, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    assert words.moment(at) == "2026-01-02 03:04:05 UTC"
    assert [words.span(value) for value in (None, 0.25, 59, 61, 7200, 200_000)] == [
        "", "250 ms", "59 s", "1 min", "2 h", "2 d",
    ]  # fmt: skip


def test_a_long_message_is_cut_to_one_line() -> None:
    assert words.headline("one\ntwo") == "one"
    assert len(words.headline("x" * 500)) == 160


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeadLetterNotFound("x"), 404),
        (InvalidOption("mode", "x", "no"), 400),
        (NotReplayable("x", "resolved"), 409),
        (DatabaseUnavailable("host", "gone"), 503),
        (SettingsInvalid(["x"]), 500),
    ],
)
async def test_an_error_of_ours_becomes_a_status_and_its_words(error: ThreadmillError, status: int) -> None:
    def fail() -> None:
        raise error

    assert status_of(error) == status
    with ThreadPoolExecutor(1) as pool, pytest.raises(Refusal) as raised:
        await run_in(pool, fail)
    assert (raised.value.status_code, raised.value.words) == (status, str(error))


async def test_no_more_errands_are_begun_than_may_be_under_way() -> None:
    errands, go = Errands(1), threading.Event()
    first = errands.begin(go.wait, 10)
    with pytest.raises(Refusal, match="503"):
        errands.begin(go.wait, 10)
    go.set()
    assert await asyncio.wait_for(outcome(first), 10)
    assert await outcome(errands.begin(lambda: 7)) == 7


def why_not(host: str, address: str, **options: Any) -> str | None:
    """Why a page that was asked for under this host may not act, where Flower listens on this address."""
    given = {"read_only": False, "basic_auth": None, "auth": "", "address": address, **options}
    opened = given.pop("opened", False)
    handler = SimpleNamespace(
        application=SimpleNamespace(options=SimpleNamespace(**given)),
        request=SimpleNamespace(host_name=host),
        unauthenticated_api=opened,
    )
    return PageHandler.may_not_act.fget(handler)


def test_without_a_password_only_this_machine_may_act() -> None:
    assert why_not("localhost", "127.0.0.1") is None
    assert why_not("[::1]", "::1") is None
    assert "FLOWER_BASIC_AUTH" in (why_not("localhost", "0.0.0.0") or "")
    assert "FLOWER_BASIC_AUTH" in (why_not("localhost", "") or "")
    assert "FLOWER_BASIC_AUTH" in (why_not("elsewhere.example", "127.0.0.1") or "")


def test_with_a_password_or_where_flower_is_opened_all_may_act_but_in_read_only_mode() -> None:
    assert why_not("elsewhere.example", "0.0.0.0", basic_auth=["ada:lovelace"]) is None
    assert why_not("elsewhere.example", "0.0.0.0", auth=".*@example.com") is None
    assert why_not("elsewhere.example", "0.0.0.0", opened=True) is None
    assert "read-only" in (why_not("localhost", "127.0.0.1", basic_auth=["a:b"], read_only=True) or "")


def actor(user: object, authorization: str, basic_auth: list[str] | None) -> str:
    handler = SimpleNamespace(
        current_user=user,
        request=SimpleNamespace(headers={"Authorization": authorization}),
        application=SimpleNamespace(options=SimpleNamespace(basic_auth=basic_auth)),
    )
    return PageHandler.actor.fget(handler)


def test_who_acts_is_known_by_the_name_they_logged_in_with() -> None:
    ada = "Basic " + base64.b64encode(b"ada:lovelace").decode()
    assert actor("ada@example.com", "", None) == "ada@example.com"
    assert actor(True, ada, ["ada:lovelace"]) == "ada"
    # Where nobody is asked for a password, a name that is given anyway proves nothing.
    assert actor(True, ada, None) == "flower"


def test_dead_letters_need_no_flower() -> None:
    code = "import sys; sys.modules['flower'] = sys.modules['tornado'] = None; import threadmill.dlq"
    subprocess.run([sys.executable, "-c", code], check=True)
