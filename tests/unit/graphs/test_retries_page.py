"""The examples of docs/retries.md, as they stand there."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from threadmill.core.errors import GraphConfigInvalid
from threadmill.core.policy import GraphPolicy
from threadmill.graphs import USED, Registry

PAGE = (Path(__file__).parents[3] / "docs" / "retries.md").read_text("utf-8")


def example(language: str, containing: str) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found


def run(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(source, names)
    return names


class Hiccup(BaseHTTPRequestHandler):
    """Answers the first request with 503 and the next ones with 200."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(503 if self.asked == 1 else 200)
        self.send_header("Content-Length", "5")
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def website() -> Iterator[str]:
    Hiccup.asked = 0
    with HTTPServer(("127.0.0.1", 0), Hiccup) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_classifier_and_the_policy_work(project: Any) -> None:
    project.agent("")
    project.write("judge.py", example("python", "# judge.py"))
    registry = Registry.read(project.write("langgraph.json", example("json", '"threadmill"')))
    judge = registry.classifier("chat")
    judged = run(example("python", "# judge.py"))
    assert judged["judge"](judged["SearchBusy"]()).retry_after == 15
    deadlock = type("OperationalError", (Exception,), {"__module__": "pymysql.err"})(1213, "Deadlock found")
    assert judge(deadlock).kind == "transient"
    assert judge(type(deadlock)(1054, "Unknown column")).kind == "permanent"
    assert registry.policy("chat") == GraphPolicy(
        max_attempts=5,
        retry_delay=2,
        retry_delay_max=120,
        timeout=120,
        deadline=900,
        classifier="./judge.py:judge",
    )


def test_the_impossible_value_is_named_with_the_line_that_the_page_says(project: Any) -> None:
    wrong = example("json", '"threadmill"').replace('"timeout": 120', '"timeout": 1200')
    path = project.write("langgraph.json", wrong)
    with pytest.raises(GraphConfigInvalid) as error:
        Registry.read(path)
    assert str(error.value) in PAGE


def test_the_table_of_the_policy_has_its_defaults() -> None:
    written = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE, re.MULTILINE))
    policy = GraphPolicy()
    defaults = {key: "none" if (value := getattr(policy, key)) is None else f"{value:g}" for key in written}
    assert written == defaults
    assert len(written) == 9


def test_retry_calls_again(website: str) -> None:
    assert run(example("python", "async def ask"))["fetch"](website) == b"hello"
    assert Hiccup.asked == 2


async def test_retry_and_dependency_stand_together_in_a_graph(website: str) -> None:
    graph = run(example("python", "# page.py"))["graph"]
    used: set[str] = set()
    token = USED.set(used)
    try:
        assert (await graph.ainvoke({"url": website}))["size"] == 5
    finally:
        USED.reset(token)
    assert used == {"website"}


def test_the_classifier_fits_into_langgraphs_policy() -> None:
    policy = run(example("python", "RetryPolicy"))["policy"]
    assert policy.retry_on(TimeoutError())
    assert not policy.retry_on(ValueError())


def test_the_page_lists_no_key_that_is_not_there() -> None:
    content = json.loads(example("json", '"threadmill"'))
    assert set(content["threadmill"]["graphs"]["report"]) <= set(GraphPolicy.model_fields)
