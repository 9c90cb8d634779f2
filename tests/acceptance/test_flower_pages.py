"""Our pages in Flower, as a person uses them: a real worker, a real Flower, a real browser."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.conftest import TEMPLATE, WorkerProcess, with_database

from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.dlq.filter import LetterFilter
from threadmill.producers import Producer

COMMAND = [sys.executable, "-P", "-m", "threadmill.cli.main"]
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
# What the pages looked like is kept here, in the folder in which the tests are run.
PICTURES = Path("test-results") / "flower"

GRAPHS = """
    import operator
    from pathlib import Path
    from typing import Annotated

    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        question: str
        notes: Annotated[list, operator.add]

    def fetch(state):
        return {"notes": ["fetched"]}

    def answer(state):
        if Path("down").exists():
            if state["question"].startswith("parcel"):
                raise ConnectionError("the courier's service does not answer")
            raise ValueError(f"<script>window.hacked = true</script> no answer to {state['question']}")
        return {"notes": ["answered"]}

    assistant = (
        StateGraph(State).add_node("fetch", fetch).add_node("answer", answer)
        .add_edge(START, "fetch").add_edge("fetch", "answer")
    )
    courier = assistant
"""
# The environment of each; they start side by side.
FLOWERS: dict[str, dict[str, str]] = {
    "open": {},
    "read-only": {"FLOWER_BASIC_AUTH": "ada:lovelace", "FLOWER_READ_ONLY": "true"},
    "cut off": {
        "THREADMILL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "FLOWER_URL_PREFIX": "mill",
    },
}
# A page asks every two seconds what has changed; the machine may be busy.
expect.set_options(timeout=20_000)
THREAD = '<i>one</i> & "two"'


def ask(question: str) -> dict[str, Any]:
    return {"question": question, "notes": []}


class House:
    """A ledger with dead letters in it, a worker, and the FLOWERS. `down`: while it is there, runs fail."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.graphs_file.parent
        self.producer = Producer(settings)
        self.desk = Desk(settings)
        self._worker = WorkerProcess(settings, "asyncio")
        self._flowers = {name: self._start(**environment) for name, environment in FLOWERS.items()}
        self._urls: dict[str, str] = {}
        self._worker.wait_for("worker.ready")

    def _start(self, **environment: str) -> subprocess.Popen[str]:
        values = {
            f"THREADMILL_{name.upper()}": str(value)
            for name, value in self.settings.model_dump(mode="json").items()
            if value is not None
        }
        with (self.folder / "flower.log").open("a") as log:
            return subprocess.Popen(
                [*COMMAND, "flower", "--port", "0", "--json"],
                cwd=self.folder,
                env={**os.environ, **values, **environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def flower(self, name: str = "open") -> str:
        """The URL of one of the FLOWERS, once it is ready."""
        if name not in self._urls:
            text, stdout = "", self._flowers[name].stdout
            assert stdout is not None
            while not text.endswith("}\n"):
                line = stdout.readline()
                assert line, (self.folder / "flower.log").read_text()
                text += line
            self._urls[name] = json.loads(text)["url"]
        return self._urls[name]

    @property
    def down(self) -> Path:
        return self.folder / "down"

    def fail(self, graph: str, question: str, tenant: str, thread: str) -> str:
        """The id of the dead letter of a run that failed for good."""
        self.down.touch()
        run = self.producer.enqueue(graph, ask(question), tenant=tenant, thread_id=thread)
        assert self.producer.wait(run.id, tenant=tenant, timeout=30).status == "error"
        (letter,) = self.desk.list(LetterFilter(tenant=tenant, thread_id=thread), limit=1)
        assert letter.run_id == run.id
        return letter.id

    def close(self) -> None:
        self.producer.close()
        self.desk.close()
        for process in self._flowers.values():
            process.send_signal(signal.SIGTERM)
        self._worker.stop()
        for process in self._flowers.values():
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def house(services: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    database_url, broker_url = services
    name = f"threadmill_pages_{os.getpid()}"
    folder = tmp_path_factory.mktemp("pages")
    (folder / "graphs.py").write_text(textwrap.dedent(GRAPHS))
    policies = {"assistant": {"max_attempts": 1}, "courier": {"max_attempts": 1, "on_dead_letter": "hold"}}
    (folder / "langgraph.json").write_text(
        json.dumps(
            {
                "graphs": {graph: f"./graphs.py:{graph}" for graph in policies},
                "dependencies": ["."],
                "threadmill": {"graphs": policies},
            }
        )
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {TEMPLATE} strategy file_copy")
        house = House(
            Settings(
                database_url=with_database(database_url, name),
                broker_url=broker_url,
                queue=name,
                folder=folder / ".threadmill",
                graphs_file=folder / "langgraph.json",
                graphs_refresh=0.001,
                log_format="json",
            )
        )
        yield house
        house.close()
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        reason = "Debian's chromium is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def visit(house: House, chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of Flower; nothing may be asked of another host, and no script may fail."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def visit(path: str, width: int = 1280, flower: str = "open", **options: Any) -> Page:
        url = house.flower(flower)
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("data:", url)) else complaints.append(request.url)
            ),
        )
        page.goto(url + path)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def stay(page: Page) -> None:
    """Marks the page, so that a reload is noticed."""
    page.evaluate("window.stayed = true")


def stayed(page: Page) -> bool:
    return bool(page.evaluate("window.stayed === true"))


def said(page: Page, words: str) -> None:
    expect(page.locator(".toast-body", has_text=words)).to_be_visible()


def post(url: str, path: str, form: dict[str, str], **headers: str) -> tuple[int, str]:
    """The status and the text of the answer to a form that no page has sent."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    body = urllib.parse.urlencode(form)
    connection.request("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded", **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def get(url: str, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, text and cookie of a page."""
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, (answer.getheader("Set-Cookie") or "").partition(";")[0]


def test_what_failed_is_found_and_replayed_and_seen_resolved(
    house: House, visit: Callable[..., Page]
) -> None:
    letter = house.fail("assistant", "why", "acme", THREAD)
    page = visit("/workers")
    page.get_by_role("link", name="Dead letters").click()
    stay(page)
    group = page.locator("[data-group]", has_text="ValueError")
    expect(group).to_contain_text("assistant")
    picture(page, "groups")

    group.get_by_role("link", name="ValueError").click()
    expect(page.locator("#found")).to_have_text("1")
    picture(page, "group")
    page.locator(f"[data-letter='{letter}']").get_by_role("link", name="ValueError").click()
    stay(page)
    expect(page.locator("#status")).to_have_text("waiting")
    expect(page.locator("#preview")).to_contain_text("resume")
    expect(page.locator("#facts")).to_contain_text(THREAD)
    expect(page.locator("#traceback")).to_contain_text("<script>window.hacked = true</script>")
    expect(page.locator("#traceback .tm-own").first).to_contain_text("answer")
    expect(page.locator("#state")).to_contain_text("fetched")
    picture(page, "letter")

    house.down.unlink()
    page.locator("#replay").click()
    said(page, "resume")
    expect(page.locator("#status")).to_have_text("resolved")
    expect(page.locator("#actions")).to_contain_text("replay by flower")
    assert stayed(page)
    assert page.evaluate("window.hacked") is None
    assert house.producer.state("acme", THREAD).values["notes"] == ["fetched", "answered"]
    picture(page, "letter-resolved")


def test_a_letter_is_discarded_with_a_reason_and_restored(house: House, visit: Callable[..., Page]) -> None:
    letter = house.fail("assistant", "discard me", "acme", "discarded")
    page = visit(f"/dead-letters/letter/{letter}")
    stay(page)

    page.get_by_label("Reason or note").fill("the customer has left")
    expect(page.locator("#live-words")).to_have_text("Paused while you type")
    page.locator("#discard").click()
    expect(page.locator("#status")).to_have_text("discarded")
    expect(page.locator("#actions")).to_contain_text("the customer has left")
    page.locator("#restore").click()
    expect(page.locator("#status")).to_have_text("parked")
    assert stayed(page)
    assert house.desk.get(letter).status == "parked"


def test_a_trial_on_a_copy_shows_its_outcome_and_changes_nothing(
    house: House, visit: Callable[..., Page]
) -> None:
    letter = house.fail("assistant", "try me", "acme", "tried")
    page = visit(f"/dead-letters/letter/{letter}")
    house.down.unlink()

    page.locator("#scratch").click()
    expect(page.locator("#trial")).to_contain_text("success")
    expect(page.locator("#trial")).to_contain_text("answered")
    picture(page, "trial")
    expect(page.locator("#status")).to_have_text("waiting")
    assert house.desk.get(letter).status == "waiting"


def test_a_group_is_paused_and_replayed_as_a_whole(house: House, visit: Callable[..., Page]) -> None:
    letters = [house.fail("assistant", f"parcel {number}", "globex", f"p{number}") for number in range(5)]
    group = house.desk.get(letters[0]).fingerprint
    page = visit(f"/dead-letters/list?group={urllib.parse.quote(group)}")
    stay(page)

    page.locator("#pause").click()
    expect(page.locator("#drain")).to_contain_text("paused by flower")
    expect(page.locator("#pause")).to_have_text("Go on draining")
    page.locator("#pause").click()
    expect(page.locator("#pause")).to_have_text("Pause draining")

    house.down.unlink()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#replay-all").click()
    said(page, "Replaying 5 dead letters")
    expect(page.locator("[data-job]")).to_have_attribute("data-status", "done")
    expect(page.locator("[data-job]")).to_contain_text("5 replayed")
    expect(page.locator("[data-letter][data-status='resolved']")).to_have_count(5)
    assert stayed(page)
    picture(page, "group-job")


def test_a_held_thread_is_seen_with_what_waits_behind_it(house: House, visit: Callable[..., Page]) -> None:
    letter = house.fail("courier", "parcel", "initech", "held")
    for number in range(3):
        house.producer.enqueue("courier", ask(f"later {number}"), tenant="initech", thread_id="held")
    page = visit("/threads")
    stay(page)

    held = page.locator("[data-held='held']")
    expect(held).to_contain_text("3 runs")
    expect(page.locator("[data-thread='held']")).to_contain_text("held")
    picture(page, "threads")
    held.get_by_role("link", name="held", exact=True).click()
    expect(page.locator("[data-run]")).to_have_count(4)
    expect(page.locator("#timeline .tm-run .tm-bar-failed")).to_have_count(1)
    expect(page.locator("#standing")).to_contain_text("held by")
    picture(page, "thread")

    stay(page)
    house.down.unlink()
    house.desk.replay(letter)
    expect(page.locator("[data-run] .badge", has_text="success")).to_have_count(4)
    assert stayed(page)


def test_tenants_are_shown_with_what_they_have(house: House, visit: Callable[..., Page]) -> None:
    house.fail("assistant", "why", "hooli", "asked")
    page = visit("/tenants")

    row = page.locator("[data-tenant='hooli']")
    expect(row.locator("[data-label='Failed, open']")).to_have_text("1")
    expect(row.locator("[data-label='Pending']")).to_have_text("0")
    picture(page, "tenants")


def test_pages_fit_a_phone(house: House, visit: Callable[..., Page]) -> None:
    letter = house.fail("assistant", "x" * 300, "acme", "y" * 120)
    thread = urllib.parse.urlencode({"tenant": "acme", "thread": "y" * 120})
    paths = {
        "groups": "/dead-letters",
        "letters": "/dead-letters/list",
        "letter": f"/dead-letters/letter/{letter}",
        "threads": "/threads",
        "thread": f"/threads/one?{thread}",
        "tenants": "/tenants",
    }
    page = visit("/dead-letters", width=375)
    for name, path in paths.items():
        page.goto(house.flower() + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, name
        picture(page, f"phone-{name}")


def test_a_form_that_no_page_of_ours_sent_is_refused(house: House) -> None:
    letter = house.fail("assistant", "keep me", "acme", "kept")
    path = f"/dead-letters/letter/{letter}/discard"
    cookie = get(house.flower(), "/dead-letters")[2]
    token = cookie.partition("=")[2]

    assert post(house.flower(), path, {})[0] == 403
    assert post(house.flower(), path, {"_xsrf": token})[0] == 403
    assert post(house.flower(), path, {}, Cookie=cookie)[0] == 403
    assert house.desk.get(letter).status == "waiting"
    # Nor may a page of another host's act that has its own name lead here.
    rebound = {"Cookie": cookie, "X-XSRFToken": token, "Host": "elsewhere.example"}
    assert post(house.flower(), path, {}, **rebound)[0] == 403
    assert post(house.flower(), path, {}, **{"Cookie": cookie, "X-XSRFToken": token}) == (
        200,
        '{"message": "Now discarded."}',
    )


def test_what_cannot_be_done_is_said_in_words(house: House) -> None:
    letter = house.fail("assistant", "twice", "acme", "twice")
    house.desk.discard(letter)
    cookie = get(house.flower(), "/dead-letters")[2]
    ours = {"Cookie": cookie, "X-XSRFToken": cookie.partition("=")[2]}
    path = f"/dead-letters/letter/{letter}"

    for status, asked, words in (
        (404, "/dead-letters/letter/nobody", "no dead letter nobody"),
        (404, "/threads/one?tenant=acme&thread=none", "has no thread"),
        (400, "/dead-letters/list?status=lost", "must be one of"),
        (400, "/dead-letters/list?after=x", "must be the id"),
        (400, "/threads/one", "Which thread?"),
    ):
        found, text, _ = get(house.flower(), asked)
        assert (found, "Traceback" in text) == (status, False), asked
        assert words in text
    conflict, text = post(house.flower(), f"{path}/replay", {}, **ours)
    assert (conflict, "is discarded" in json.loads(text)["message"]) == (409, True)
    mode, text = post(house.flower(), f"{path}/replay", {"mode": "backwards"}, **ours)
    assert (mode, "mode" in json.loads(text)["message"]) == (400, True)
    reason, _ = post(house.flower(), f"{path}/note", {"reason": "x" * 1001}, **ours)
    assert reason == 400
    none, _ = post(house.flower(), "/dead-letters/group/replay", {"group": "nothing"}, **ours)
    assert none == 404


def test_flowers_own_password_and_read_only_mode_hold_for_our_pages(
    house: House, visit: Callable[..., Page]
) -> None:
    letter = house.fail("assistant", "look", "acme", "looked-at")
    flower = house.flower("read-only")
    path = f"/dead-letters/letter/{letter}"
    ada = {"Authorization": "Basic " + base64.b64encode(b"ada:lovelace").decode()}

    for asked in ("/dead-letters", "/dead-letters/list", path, "/threads", "/tenants"):
        assert get(flower, asked)[0] == 401
    assert post(flower, f"{path}/discard", {})[0] in (401, 403)
    cookie = get(flower, path, **ada)[2]
    ours = {**ada, "Cookie": cookie, "X-XSRFToken": cookie.partition("=")[2]}
    refused, text = post(flower, f"{path}/discard", {}, **ours)
    assert (refused, json.loads(text)["message"]) == (403, "Flower is in read-only mode.")

    password = {"username": "ada", "password": "lovelace"}
    page = visit(path, flower="read-only", http_credentials=password, color_scheme="dark")
    expect(page.locator("#status")).to_have_text("waiting")
    expect(page.get_by_role("button", name=re.compile("Replay|Discard|Park"))).to_have_count(0)
    picture(page, "read-only-dark")


def test_pages_say_that_postgres_is_away(house: House) -> None:
    flower = house.flower("cut off")
    assert flower.endswith("/mill")

    status, text, _ = get(flower, "/mill/dead-letters")
    assert (status, "Traceback" in text) == (503, False)
    assert "127.0.0.1:1" in text
    (style,) = re.findall(r'href="(/mill/threadmill/static/pages[^"]+)"', text)
    assert get(flower, style)[0] == 200
    assert 'href="/mill/tenants"' in text
    assert get(flower, "/mill/workers")[0] == 200
