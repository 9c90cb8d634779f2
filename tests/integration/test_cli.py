"""The command line on a real ledger: what it prints for programs, and how it ends."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from threadmill.cli.main import app
from threadmill.core.doorbell import Bell
from threadmill.core.logs import configure_logs
from threadmill.core.revision import REVISION
from threadmill.core.settings import Settings
from threadmill.workers.executor import RunPostponed

RUN = {
    "id", "tenant", "thread_id", "graph", "status", "seq", "attempt", "created_at", "started_at",
    "finished_at", "output", "error", "metadata",
}  # fmt: skip
DEAD_LETTER = {
    "id", "run_id", "tenant", "thread_id", "seq", "graph", "graph_version", "topology_hash", "versions",
    "reason", "error", "exception_type", "node", "task", "next_nodes", "base_checkpoint_id", "checkpoint_id",
    "fingerprint", "replays", "replay_mode", "replay_why", "replayed_at", "status", "next_replay_at",
    "created_at", "updated_at",
}  # fmt: skip

ATTEMPT = {
    "attempt", "replay", "outcome", "cause", "node", "checkpoint_id", "worker_id", "started_at", "ended_at",
    "fenced_writes", "exception_type", "message", "traceback",
}  # fmt: skip

GRAPHS = """
    import operator
    from typing import Annotated
    from langgraph.graph import START, StateGraph
    from langgraph.types import interrupt
    from typing_extensions import TypedDict

    class State(TypedDict):
        words: Annotated[list[str], operator.add]

    async def speak(state):
        if state["words"][-1] == "boom":
            raise ValueError("it went \\x1b[31mboom")
        return {"words": ["and"]}

    async def ask(state):
        return {"words": [interrupt("which word?")]}

    async def reach(state):
        raise ConnectionError("nobody there")

    speaker = StateGraph(State).add_node("speak", speak).add_edge(START, "speak")
    asker = StateGraph(State).add_node("ask", ask).add_edge(START, "ask")
    reacher = StateGraph(State).add_node("reach", reach).add_edge(START, "reach")
"""


@pytest.fixture(autouse=True)
def logs(settings: Settings) -> Iterator[None]:
    """The logs of the worker in this process go where a command sends its own, from its start on."""
    handlers, level = logging.root.handlers[:], logging.root.level
    configure_logs(settings)
    yield
    logging.root.handlers[:] = handlers  # a command leaves one for a stream that is gone by now
    logging.root.setLevel(level)


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command line with the test's settings."""
    for name, value in settings.model_dump(mode="json").items():
        monkeypatch.setenv(f"THREADMILL_{name.upper()}", str(value))
    monkeypatch.chdir(settings.graphs_file.parent)
    return lambda *arguments, **how: CliRunner().invoke(app, list(arguments), **how)


@pytest.fixture
def ask(run: Callable[..., Result]) -> Callable[..., Any]:
    """The JSON document that a command prints; it must end with the status 0, or with `ends`."""

    def ask(*arguments: str, ends: int = 0) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == ends, result.stderr
        return json.loads(result.stdout)

    return ask


@pytest.fixture
def enqueue(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Enqueues words on a thread of acme's, and gives the run."""

    def enqueue(
        graph: str, *words: str, thread: str = "t", ends: int = 0, options: list[str] | None = None
    ) -> Any:
        given = ["--input", json.dumps({"words": words})] if words else []
        return ask(
            "enqueue", graph, "--tenant", "acme", "--thread", thread, *given, *(options or []), ends=ends
        )

    return enqueue


@pytest.fixture
def served(serve: Callable[..., None], start_local: Callable[..., Any]) -> Any:
    """A worker that answers for two graphs."""
    serve(GRAPHS, speaker={"max_attempts": 1}, asker={})
    worker = start_local()
    worker.listen()
    return worker


@pytest.fixture
def waiting(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    ask: Callable[..., Any],
    admin: psycopg.Connection[Any],
) -> Any:
    """A run of acme's that failed once and waits ten minutes for its retry, and one behind it."""
    serve(GRAPHS, reacher={"retry_delay": 3600, "retry_delay_max": 3600})
    worker = start_local(ring_again_after=60)
    given = ["--tenant", "acme", "--thread", "t", "--input", '{"words": ["one"]}']
    first, second = (ask("enqueue", "reacher", *given) for _ in range(2))
    answer = worker.runtime.submit(worker.runtime.answer(Bell.of(first["id"], "acme", "t", "reacher")))
    assert isinstance(answer.exception(timeout=20), RunPostponed)
    worker.stop()
    admin.execute("update runs set run_at = now() + interval '10 minutes' where id = %s", [first["id"]])
    return first["id"], second["id"]


def errors(result: Result) -> list[str]:
    """The errors on stderr, without the log lines of a worker in this process."""
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


WAIT = ["--wait", "--timeout", "20"]


@pytest.mark.usefixtures("served")
def test_a_run_is_waited_for_and_shown(ask: Callable[..., Any], enqueue: Callable[..., Any]) -> None:
    done = enqueue("speaker", "one", options=[*WAIT, "--metadata", '{"by": "me"}'])

    assert set(done) == RUN
    assert (done["status"], done["output"], done["metadata"]) == (
        "success",
        {"words": ["one", "and"]},
        {"by": "me"},
    )
    assert ask("runs", "show", done["id"]) == done
    assert ask("runs", "show", done["id"], "--tenant", "acme") == done


@pytest.mark.usefixtures("served")
def test_another_tenants_run_is_not_found(run: Callable[..., Result], enqueue: Callable[..., Any]) -> None:
    done = enqueue("speaker", "one", options=WAIT)

    result = run("runs", "show", done["id"], "--tenant", "globex")

    assert (result.exit_code, result.stdout) == (1, "")
    assert errors(result) == [f"error: no run {done['id']}"]


@pytest.mark.usefixtures("served")
def test_a_run_that_fails_ends_the_waiting_command_with_1(
    run: Callable[..., Result], ask: Callable[..., Any], enqueue: Callable[..., Any]
) -> None:
    done = enqueue("speaker", "boom", options=WAIT, ends=1)

    assert done["error"] == {"type": "ValueError", "message": "it went \x1b[31mboom", "node": "speak"}
    shown = run("runs", "show", done["id"]).stdout
    assert "attempt 1 failed" in shown
    assert "Traceback (most recent call last)" in shown
    assert "\x1b" not in shown


def test_a_run_that_waits_for_its_retry_says_so_and_why(
    waiting: tuple[str, str], run: Callable[..., Result], ask: Callable[..., Any]
) -> None:
    first, second = waiting

    lines = run("runs", "show", first).stdout.splitlines()
    facts = {line.split("  ")[0]: line for line in lines}
    assert "pending" in facts["status"]
    assert "for its retry, " in facts["waits"]
    assert facts["waits"].rstrip().endswith("(in 10 min)")
    assert "1, 1 of 3 spent" in facts["attempt"]
    assert "ConnectionError: nobody there (in node reach)" in facts["error"]
    assert any("failed" in line and "transient: ConnectionError" in line for line in lines)

    behind = run("runs", "show", second).stdout
    assert "for another run of its thread, which goes first" in behind
    listed = {line.split()[0]: line for line in run("runs", "list").stdout.splitlines() if line.strip()}
    assert "retry in 10 min" in listed[first]
    assert "1/3" in listed[first]
    assert "in 10 min" not in listed[second]
    assert set(ask("runs", "show", first)) == RUN


def test_what_is_known_of_a_runs_attempts_is_there_for_programs(
    waiting: tuple[str, str], ask: Callable[..., Any]
) -> None:
    shown = ask("runs", "show", waiting[0], "--attempts")

    assert set(shown) - RUN == {
        "failures", "max_attempts", "worker_losses", "throttled", "replays", "replay_mode", "waits_until",
        "attempts",
    }  # fmt: skip
    assert (shown["failures"], shown["max_attempts"], shown["worker_losses"]) == (1, 3, 0)
    assert datetime.datetime.fromisoformat(shown["waits_until"]) > datetime.datetime.now(datetime.UTC)
    (attempt,) = shown["attempts"]
    assert set(attempt) == ATTEMPT
    assert (attempt["attempt"], attempt["outcome"], attempt["node"]) == (1, "failed", "reach")
    assert attempt["cause"] == "transient: ConnectionError"
    assert attempt["exception_type"] == "ConnectionError"
    assert attempt["fenced_writes"] == 0
    assert "one" not in json.dumps(shown)  # what a user handed over is shown nowhere


def test_a_thread_says_for_which_run_its_lane_waits(
    waiting: tuple[str, str], run: Callable[..., Result], ask: Callable[..., Any]
) -> None:
    thread = ask("threads", "show", "t", "--tenant", "acme")

    assert thread["waits_for"] == waiting[0]
    assert thread["waits_until"] is not None
    shown = run("threads", "show", "t", "--tenant", "acme").stdout
    assert f"run {waiting[0]}, pending" in shown
    assert "which waits for its retry, " in shown


def test_what_a_run_waits_for_is_what_its_claim_waits_for(
    waiting: tuple[str, str], run: Callable[..., Result], admin: psycopg.Connection[Any]
) -> None:
    first, _ = waiting

    def waits() -> str:
        """The lines of the fact, as one."""
        shown = run("runs", "show", first).stdout
        return shown[shown.index("waits") : shown.index("\nattempt")]

    admin.execute("update runs set run_at = now(), rank = case when rank is not null then now() end")
    assert "for a worker that is free" in waits()
    admin.execute("update runs set worker_losses = 2 where id = %s", [first])
    assert "for a place to run alone" in waits()
    assert "2; so it runs alone" in run("runs", "show", first).stdout
    assert "alone" in run("runs", "list").stdout

    admin.execute("insert into limits (kind, name, paused) values ('tenant', 'acme', true)")
    admin.execute(
        "insert into breakers (kind, name, graphs, failures, open_until, opened_at, reason) "
        "values ('dependency', 'search', '{reacher}', 10, now() + interval '1 minute', now(), 'ConnectError')"
    )
    held = admin.execute(
        "insert into dead_letters (id, run_id, tenant, thread_id, graph, reason, error, fingerprint) "
        "select gen_random_uuid(), id, tenant, thread_id, graph, 'permanent', '{}', 'f' from runs "
        "where id <> %s returning id",
        [first],
    ).fetchone()
    assert held is not None
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id) values ('acme', 't', 0, %s)", [held[0]]
    )
    found = waits()
    assert "for its tenant, which is paused" in found
    assert "for the breaker of dependency search" in found
    assert f"for dead letter {held[0]}, which holds its thread" in found


def test_runs_come_in_pages_of_all_tenants_or_one(
    serve: Callable[..., None], start_local: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    serve(GRAPHS, speaker={})
    start_local().stop()  # it has announced the graph
    made = [
        ask("enqueue", "speaker", "--tenant", tenant, "--thread", "t", "--input", '{"words": ["w"]}')["id"]
        for tenant in ("acme", "globex", "acme")
    ]

    assert [r["id"] for r in ask("runs", "list")] == made[::-1]
    assert [r["id"] for r in ask("runs", "list", "--limit", "2")] == [made[2], made[1]]
    assert [r["id"] for r in ask("runs", "list", "--after", made[1])] == [made[0]]
    assert [r["id"] for r in ask("runs", "list", "--tenant", "acme", "--status", "pending")] == [
        made[2],
        made[0],
    ]
    assert ask("runs", "list", "--graph", "other") == ask("runs", "list", "--thread", "other") == []


def test_a_run_is_cancelled_without_naming_its_tenant(
    serve: Callable[..., None], start_local: Callable[..., Any], run: Callable[..., Result],
    ask: Callable[..., Any], enqueue: Callable[..., Any],
) -> None:  # fmt: skip
    serve(GRAPHS, speaker={})
    start_local().stop()
    pending = enqueue("speaker", "w")

    assert ask("runs", "cancel", pending["id"])["status"] == "interrupted"
    again = run("runs", "cancel", pending["id"])
    assert again.exit_code == 1
    assert "cannot be cancelled" in again.stderr


def test_a_run_is_rolled_back_on_request(
    serve: Callable[..., None], start_local: Callable[..., Any], run: Callable[..., Result],
    ask: Callable[..., Any], enqueue: Callable[..., Any],
) -> None:  # fmt: skip
    serve(GRAPHS, speaker={})
    start_local().stop()
    pending = enqueue("speaker", "w")

    unknown = run("runs", "cancel", pending["id"], "--action", "undo")
    assert unknown.exit_code == 2
    assert ask("runs", "show", pending["id"])["status"] == "pending"
    done = ask("runs", "cancel", pending["id"], "--action", "rollback")
    assert (done["status"], done["error"]["message"]) == ("interrupted", "rolled back on request")


def test_bad_input_is_named_and_nothing_is_written(
    serve: Callable[..., None],
    start_local: Callable[..., Any],
    run: Callable[..., Result],
    ask: Callable[..., Any],
) -> None:
    serve(GRAPHS, speaker={})
    start_local()

    for arguments, says in (
        (["enqueue", "other", "--tenant", "t", "--thread", "x"], "no graph 'other'; known graphs: speaker"),
        (["enqueue", "speaker", "--tenant", "a b", "--thread", "x"], "tenant 'a b'"),
        (["enqueue", "speaker", "--tenant", "t", "--thread", ""], "thread_id ''"),
        (
            ["enqueue", "speaker", "--tenant", "t", "--thread", "x", "--input", '{"words": ["\\u0000"]}'],
            "NUL",
        ),
        (["enqueue", "speaker", "--tenant", "t", "--thread", "x", "--input", "3"], "input"),
        (["runs", "list", "--status", "odd"], "status='odd': must be one of pending"),
        (["runs", "list", "--after", "odd"], "after='odd'"),
        (["threads", "list", "--after", "odd"], "tenant:thread"),
        (["threads", "show", "x", "--tenant", "t"], "has no thread 'x'"),
        (["dlq", "show", "odd"], "no dead letter odd"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), arguments
        (error,) = errors(result)
        assert says in error
    assert ask("threads", "list") == []


@pytest.mark.usefixtures("served")
def test_a_thread_shows_its_state_and_its_runs(ask: Callable[..., Any], enqueue: Callable[..., Any]) -> None:
    asked = enqueue("asker", "first", options=WAIT)

    thread = ask("threads", "show", "t", "--tenant", "acme")
    assert (thread["status"], thread["values"], thread["next"]) == (
        "interrupted",
        {"words": ["first"]},
        ["ask"],
    )
    assert [i["value"] for i in thread["interrupts"]] == ["which word?"]
    assert [r["id"] for r in thread["runs"]] == [asked["id"]]

    enqueue("asker", options=[*WAIT, "--command", '{"resume": "second"}'])

    thread = ask("threads", "show", "t", "--tenant", "acme")
    assert (thread["status"], thread["values"]) == ("idle", {"words": ["first", "second"]})
    history = ask("threads", "history", "t", "--tenant", "acme")
    assert history[0]["checkpoint_id"] == thread["checkpoint_id"]
    assert (
        ask("threads", "history", "t", "--tenant", "acme", "--after", history[0]["checkpoint_id"])
        == history[1:]
    )


def test_threads_come_in_pages_of_all_tenants_or_one(
    ask: Callable[..., Any], admin: psycopg.Connection[Any]
) -> None:
    for tenant, thread in (("b", "t1"), ("a", "t2"), ("a", "t1"), ("a.b", "x:y")):
        admin.execute("insert into threads (tenant, thread_id) values (%s, %s)", [tenant, thread])

    def keys(*options: str) -> list[str]:
        return [f"{t['tenant']}:{t['thread_id']}" for t in ask("threads", "list", *options)]

    everything = keys()
    assert sorted(everything) == ["a.b:x:y", "a:t1", "a:t2", "b:t1"]
    for index, key in enumerate(everything):
        assert keys("--after", key) == everything[index + 1 :]
    assert keys("--tenant", "a") == ["a:t1", "a:t2"]
    assert keys("--tenant", "a", "--after", "t1") == ["a:t2"]
    assert keys("--limit", "1") == everything[:1]


@pytest.mark.usefixtures("served")
def test_dead_letters_are_listed_shown_replayed_and_discarded(
    run: Callable[..., Result], ask: Callable[..., Any], enqueue: Callable[..., Any]
) -> None:
    failed = [enqueue("speaker", "boom", thread=thread, options=WAIT, ends=1) for thread in ("t1", "t2")]

    second, first = ask("dlq", "list")
    assert set(first) == DEAD_LETTER
    assert [first["run_id"], second["run_id"]] == [r["id"] for r in failed]
    assert ask("dlq", "list", "--thread", "t2", "--status", "waiting") == [second]
    assert ask("dlq", "list", "--after", second["id"]) == [first]
    assert ask("dlq", "show", first["id"]).items() >= first.items()
    assert "ValueError: it went" in run("dlq", "show", first["id"]).stdout

    assert [d["status"] for d in ask("dlq", "discard", first["id"])] == ["discarded"]
    replayed = run("dlq", "replay", first["id"], second["id"], "--json")
    assert replayed.exit_code == 1  # the first is discarded already, the second is replayed all the same
    assert [d["id"] for d in json.loads(replayed.stdout)] == [second["id"]]
    assert f"error: dead letter {first['id']} is discarded" in replayed.stderr


@pytest.mark.usefixtures("served")
def test_graphs_are_listed_from_the_file_and_from_the_ledger(
    ask: Callable[..., Any], settings: Settings
) -> None:
    Path(settings.graphs_file).write_text(
        '{"graphs": {"speaker": "./graphs.py:speaker", "new": "./new.py:new"}}'
    )

    found = {graph["name"]: (graph["location"], graph["announced"]) for graph in ask("graphs", "list")}

    assert found == {
        "asker": (None, True),
        "new": ("./new.py:new", False),
        "speaker": ("./graphs.py:speaker", True),
    }


@pytest.mark.usefixtures("served")
def test_tenants_and_graphs_are_limited_and_paused(
    run: Callable[..., Result], ask: Callable[..., Any], enqueue: Callable[..., Any]
) -> None:
    enqueue("speaker", "hm")

    assert ask("tenants", "set", "acme", "--weight", "2", "--max-running", "5", "--rate", "0.5") == {
        "kind": "tenant", "name": "acme", "weight": 2, "max_running": 5, "rate": 0.5, "max_pending": None,
        "paused": False,
    }  # fmt: skip
    assert ask("tenants", "pause", "acme")["paused"]
    (acme,) = ask("tenants", "list")
    assert (acme["name"], acme["weight"], acme["max_running"], acme["paused"]) == ("acme", 2, 5, True)
    table = run("tenants", "list").stdout
    assert all(word in table for word in ("acme", "paused", "0.5", "any"))
    assert not ask("tenants", "resume", "acme")["paused"]
    assert ask("tenants", "set", "acme", "--max-running", "none")["max_running"] is None

    assert ask("graphs", "pause", "speaker")["paused"]
    limits = {graph["name"]: graph["limits"] for graph in ask("graphs", "list")}
    assert limits["speaker"] == {
        "kind": "graph", "name": "speaker", "max_running": None, "rate": None, "paused": True,
    }  # fmt: skip
    assert "paused" in run("graphs", "list").stdout
    assert not ask("graphs", "resume", "speaker")["paused"]
    refused = run("graphs", "set", "speaker", "--rate", "fast")
    assert errors(refused) == ["error: rate='fast': must be a number, or none"]


def test_the_tables_go_down_and_up_again(run: Callable[..., Result], ask: Callable[..., Any]) -> None:
    assert ask("db", "status") == {"revision": REVISION, "expected": REVISION, "current": True}

    assert run("db", "downgrade", "base", input="n\n").exit_code == 1
    assert ask("db", "downgrade", "base", "--yes") == {"revision": None, "previous": REVISION}
    assert ask("db", "status", ends=1)["current"] is False
    listed = run("runs", "list")
    assert (listed.exit_code, listed.stdout) == (1, "")
    assert "threadmill db upgrade" in listed.stderr

    assert ask("db", "upgrade") == {"revision": REVISION, "previous": None, "langgraph_tables": True}
    assert ask("runs", "list") == []


def test_an_unknown_revision_is_named(run: Callable[..., Result]) -> None:
    result = run("db", "downgrade", "4711", "--yes")

    assert result.exit_code == 1
    assert "Can't locate revision identified by '4711'" in result.stderr


@pytest.mark.usefixtures("served")
def test_a_run_is_followed(run: Callable[..., Result], enqueue: Callable[..., Any]) -> None:
    done = enqueue("speaker", "one", options=[*WAIT, "--stream-mode", "updates", "--stream-mode", "values"])

    lines = [json.loads(line) for line in run("runs", "stream", done["id"], "--json").stdout.splitlines()]

    assert [(line["mode"], line["data"]) for line in lines] == [
        ("values", {"words": ["one"]}),
        ("updates", {"speak": {"words": ["and"]}}),
        ("values", {"words": ["one", "and"]}),
    ]
    shown = run("runs", "stream", done["id"], "--tenant", "acme", "--after", lines[0]["id"])
    assert shown.stdout.splitlines()[0] == 'updates {"speak": {"words": ["and"]}}'
    plain = enqueue("speaker", "two", options=WAIT)
    refused = run("runs", "stream", plain["id"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "has no stream" in refused.stderr
    unknown = run(
        "enqueue", "speaker", "--tenant", "acme", "--thread", "t", "--input", "{}", "--stream-mode", "x"
    )
    assert errors(unknown) == [
        "error: stream_mode='x': must be one of values, updates, messages, custom, tasks, checkpoints, debug"
    ]
