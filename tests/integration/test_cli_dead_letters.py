"""`threadmill dlq` on a real ledger: what it prints, what it changes, and how it ends."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import secrets
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from threadmill.cli import output
from threadmill.cli.main import app
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
from threadmill.producers import Producer

Admin = psycopg.Connection[Any]
Run = Callable[..., Result]
Ask = Callable[..., Any]
Add = Callable[..., str]

GROUP = "3f1c9a0b7d52e846"
MISSING = "0199c0de-0000-7000-8000-000000000000"
FRAMES = [
    {"file": "langgraph/retry.py", "line": 212, "function": "retry", "code": "await run()", "own": False},
    {"file": "agent/graph.py", "line": 8, "function": "call", "code": "client.ask()", "own": True},
    {"file": "httpx/client.py", "line": 99, "function": "send", "code": "raise error", "own": False},
]
EXCEPTIONS = [
    {
        "type": "ConnectionError", "module": "builtins", "message": "nobody there", "link": "raised",
        "of": None, "frames": FRAMES, "omitted": 2,
    },
    {
        "type": "OSError", "module": "builtins", "message": "refused", "link": "caused by", "of": 0,
        "frames": [], "omitted": 0,
    },
]  # fmt: skip


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """A command leaves a log handler for a stream that is gone by now."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command of `threadmill dlq`, or another, with the test's settings."""
    for name, value in settings.model_dump(mode="json").items():
        monkeypatch.setenv(f"THREADMILL_{name.upper()}", str(value))
    return lambda *arguments, **how: CliRunner().invoke(app, list(arguments), **how)


@pytest.fixture
def ask(run: Run) -> Ask:
    """The JSON document that a command prints; it must end with the status 0, or with `ends`."""

    def ask(*arguments: str, ends: int = 0) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == ends, result.stderr
        return json.loads(result.stdout)

    return ask


@pytest.fixture
def add(admin: Admin) -> Add:
    """Adds a dead letter with its run and thread, and gives its id; each is a second younger."""
    number = iter(range(1_000_000))
    admin.execute(
        "insert into graphs (name, version, topology_hash, input_schema, channels, nodes, policy) values "
        "('agent', '1', 'h', %s, '{question}', '{call}', '{}')",
        [json.dumps({"type": "object", "properties": {"question": {"type": "string"}}})],
    )

    def add(*, tenant: str = "acme", thread: str | None = None, age: float = 3600, **columns: Any) -> str:
        n = next(number)
        created = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age - n)
        run_id, letter_id = _uuid7(created), _uuid7(created)
        thread = thread or f"t{n}"
        admin.execute("insert into threads (tenant, thread_id) values (%s, %s)", [tenant, thread])
        values = {
            "reason": "exhausted", "status": "waiting", "graph": "agent", "node": "call",
            "exception_type": "ConnectionError", "fingerprint": GROUP, "message": "nobody there", **columns,
        }  # fmt: skip
        error = {"type": values["exception_type"], "message": values.pop("message"), "node": values["node"]}
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph, status, input, attempt, failures, error, "
            "started_at, finished_at) values (%s, %s, %s, 1, %s, 'error', %s, 3, 3, %s, now(), now())",
            [run_id, tenant, thread, values["graph"], '{"question": "why?"}', json.dumps(error)],
        )
        values |= {
            "id": letter_id, "run_id": run_id, "tenant": tenant, "thread_id": thread, "seq": 1,
            "error": json.dumps(error), "exceptions": json.dumps(EXCEPTIONS), "traceback": "Traceback …",
            "graph_version": "1", "topology_hash": "h", "created_at": created, "updated_at": created,
        }  # fmt: skip
        admin.execute(
            f"insert into dead_letters ({', '.join(values)}) values ({', '.join(['%s'] * len(values))})",
            list(values.values()),
        )
        admin.execute(
            "insert into replay_groups (fingerprint, graph) values (%s, %s) on conflict do nothing",
            [values["fingerprint"], values["graph"]],
        )
        return str(letter_id)

    return add


def _uuid7(moment: datetime.datetime) -> uuid.UUID:
    head = int(moment.timestamp() * 1000) << 80 | 7 << 76 | secrets.randbits(12) << 64
    return uuid.UUID(int=head | 2 << 62 | secrets.randbits(62))


def errors(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def status_of(admin: Admin, letter_id: str) -> str:
    row = admin.execute("select status from dead_letters where id = %s", [letter_id]).fetchone()
    assert row is not None
    return str(row[0])


def actions(admin: Admin, letter_id: str) -> list[tuple[str, dict[str, Any]]]:
    """What was done about the letter, and the facts of it."""
    rows = admin.execute(
        "select action, facts from dead_letter_actions where letter_id = %s order by id", [letter_id]
    )
    return [(action, facts) for action, facts in rows]


def checksums(admin: Admin) -> dict[str, str]:
    """A sum over all rows of each table."""
    tables = admin.execute("select tablename from pg_tables where schemaname = 'threadmill' order by 1")
    return {name: _checksum(admin, name) for (name,) in tables.fetchall()}


def _checksum(admin: Admin, table: str) -> str:
    row = admin.execute(
        f"select coalesce(md5(string_agg(t::text, '|' order by t::text)), '') from {table} t"
    ).fetchone()
    assert row is not None
    return str(row[0])


# -- looking ----------------------------------------------------------------------------------------


def test_letters_are_listed_by_every_filter_and_in_pages(ask: Ask, add: Add) -> None:
    old = add(age=7200, tenant="globex", status="parked", reason="permanent", message="odd key")
    other = add(graph="other", node="write", exception_type="KeyError", fingerprint="f" * 16)
    new = add(thread="ticket")

    def ids(*options: str) -> list[str]:
        return [letter["id"] for letter in ask("dlq", "list", *options)]

    assert ids() == [new, other, old]
    assert ids("--limit", "2") == [new, other]
    assert ids("--limit", "2", "--after", other) == [old]
    for chosen, found in (
        (["--tenant", "globex"], [old]),
        (["--thread", "ticket"], [new]),
        (["--graph", "other"], [other]),
        (["--status", "parked"], [old]),
        (["--reason", "permanent"], [old]),
        (["--group", GROUP], [new, old]),
        (["--node", "write"], [other]),
        (["--exception", "KeyError"], [other]),
        (["--text", "odd"], [old]),
        (["--since", "90min"], [new, other]),
        (["--until", "90min"], [old]),
        (["--since", "2999-01-01"], []),
        (["--tenant", "acme", "--graph", "agent"], [new]),
    ):
        assert ids(*chosen) == found, chosen


def test_a_page_that_is_full_says_how_to_go_on(run: Run, add: Add) -> None:
    letters = [add() for _ in range(3)]

    result = run("dlq", "list", "--limit", "2")

    assert [letter in result.stdout for letter in letters] == [False, True, True]
    assert f"more: --after {letters[1]}" in result.stderr


def test_groups_are_listed_with_their_course_and_the_state_of_their_drain(
    run: Run, ask: Ask, add: Add, admin: Admin
) -> None:
    for tenant, age in (("acme", 3000.0), ("globex", 60.0), ("acme", 60.0)):
        add(tenant=tenant, age=age)
    add(fingerprint="f" * 16, exception_type="KeyError", status="parked")
    admin.execute(
        "update replay_groups set backoffs = 1, strays = 1, next_at = now() + interval '601 s'"
        " where fingerprint = %s",
        [GROUP],
    )

    groups = {group["fingerprint"]: group for group in ask("dlq", "groups")}
    table = run("dlq", "groups").stdout

    assert (groups[GROUP]["counts"]["waiting"], groups[GROUP]["tenants"]) == (3, 2)
    assert groups["f" * 16]["counts"]["parked"] == 1
    line = next(line for line in table.splitlines() if GROUP in line)
    assert "ConnectionError" in line
    assert "2 failed, canary in 10 min" in line
    assert "█" in line
    assert "parked" in next(line for line in table.splitlines() if "f" * 16 in line)


def test_a_letter_is_shown_with_the_graphs_own_frames_first(run: Run, add: Add) -> None:
    letter = add()
    run("dlq", "note", letter, "asked the provider")

    shown = run("dlq", "show", letter).stdout

    own, library = shown.index("agent/graph.py:8 in call"), shown.index("langgraph/retry.py:212 in retry")
    assert own < library
    assert "caused by OSError: refused" in shown
    assert "and 2 frames more" in shown
    assert re.search(r"a replay +would resume: the thread stands where the run failed", shown)
    assert '"question": "why?"' in shown
    assert re.search(r"note by \S+ .*asked the provider", shown)


def test_a_letter_is_shown_to_programs_with_all_that_is_known(ask: Ask, add: Add) -> None:
    document = ask("dlq", "show", add())

    assert document["traceback"] == "Traceback …"
    assert document["input"] == {"question": "why?"}
    assert {"attempts", "actions", "state", "diff", "held_lane", "preview", "exceptions"} <= set(document)
    assert document["preview"]["mode"] == "resume"


def test_what_is_long_is_cut_off_in_the_terminal_and_whole_for_programs(
    run: Run, ask: Ask, add: Add, admin: Admin
) -> None:
    letter = add()
    long = {"words": [f"word {n}" for n in range(500)]}
    admin.execute("update runs set input = %s", [json.dumps(long)])

    shown = run("dlq", "show", letter).stdout

    assert "word 3" in shown
    assert "word 400" not in shown
    assert "more; --json has them" in shown
    assert ask("dlq", "show", letter)["input"] == long


def test_inputs_are_in_no_list(run: Run, add: Add, admin: Admin) -> None:
    letter = add()
    admin.execute("update runs set input = %s", ['{"question": "hunter2"}'])

    for arguments in (["list"], ["groups"], ["stats"], ["jobs"], ["replay", letter, "--dry-run"]):
        for more in ([], ["--json"]):
            assert "hunter2" not in run("dlq", *arguments, *more).stdout


def test_what_a_graph_raised_does_not_steer_the_terminal(run: Run, add: Add) -> None:
    letter = add(message="\x1b[31mred", node="\x1b[2J")

    for arguments in (["list"], ["groups"], ["show", letter]):
        assert "\x1b" not in run("dlq", *arguments).stdout


def test_all_is_told_in_numbers(run: Run, ask: Ask, add: Add) -> None:
    for status in ("waiting", "waiting", "parked"):
        add(status=status)
    assert run("dlq", "pause", "--graph", "agent", "--because", "mending").exit_code == 0
    assert run("dlq", "rate", "50/s").exit_code == 0

    document = ask("dlq", "stats")
    shown = run("dlq", "stats").stdout

    assert document["by_status"]["waiting"] == 2
    assert [pause["name"] for pause in document["pauses"]] == ["agent"]
    assert [rate["rate"] for rate in document["rates"]] == [50]
    assert "2 waiting" in shown
    assert "mending" in shown
    assert "50/s" in shown


@pytest.mark.parametrize("width", [60, 80, 140])
def test_tables_fit_the_terminal_and_keep_ids_whole(
    run: Run, add: Add, admin: Admin, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = add(
        thread="a-long-name-of-a-thread/" * 4,
        graph="a_graph_with_a_name_of_some_length",
        node="a_node_with_a_name_of_some_length",
        exception_type="AnExceptionWithANameOfSomeLength",
        message="word " * 50,
    )
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id, until) "
        "select tenant, thread_id, seq, id, now() + interval '1 h' from dead_letters"
    )
    run("dlq", "replay", "--all", "--rate", "1000/s")
    monkeypatch.setattr(output, "UNBOUND_WIDTH", width)

    for arguments, kept in (
        (["dlq", "list"], letter),
        (["dlq", "groups"], GROUP),
        (["dlq", "show", letter], letter),
        (["dlq", "jobs"], ""),
        (["dlq", "stats"], ""),
        (["dlq", "replay", letter, "--dry-run"], letter),
        (["threads", "list", "--held"], letter),
    ):
        shown = run(*arguments).stdout
        assert kept in shown, arguments
        assert max(len(line) for line in shown.splitlines()) <= width, arguments


# -- replaying --------------------------------------------------------------------------------------


def test_letters_are_replayed_by_id_and_one_that_cannot_keeps_none_from_it(
    run: Run, add: Add, admin: Admin
) -> None:
    closed, letter = add(status="discarded"), add(status="parked")

    result = run("dlq", "replay", closed, MISSING, letter, "--json")

    assert result.exit_code == 1
    assert [found["id"] for found in json.loads(result.stdout)] == [letter]
    assert [line.split()[1:3] for line in errors(result)] == [["dead", "letter"], ["no", "dead"]]
    assert (status_of(admin, letter), status_of(admin, closed)) == ("replaying", "discarded")
    assert admin.execute("select status, replays from runs where replays = 1").fetchall() == [("pending", 1)]


def test_the_mode_and_an_edited_input_are_handed_on(run: Run, ask: Ask, add: Add, admin: Admin) -> None:
    letter = add()

    (replayed,) = ask("dlq", "replay", letter, "--mode", "append", "--patch", '{"question": "how?"}')

    assert (replayed["status"], replayed["replay_mode"]) == ("replaying", "append")
    shown = ask("dlq", "show", letter)
    assert (shown["input"], shown["original_input"]) == ({"question": "how?"}, {"question": "why?"})
    assert "input before it was edited" in run("dlq", "show", letter).stdout


@pytest.mark.parametrize(
    "given",
    [["--input", '{"question": 3}'], ["--patch", '{"question": 3}'], ["--patch", "[]"]],
    ids=" ".join,
)
@pytest.mark.parametrize("command", [["replay", "--mode", "append"], ["edit"]], ids=["replay", "edit"])
def test_what_does_not_fit_the_graphs_schema_is_refused_by_name(
    run: Run, add: Add, admin: Admin, command: list[str], given: list[str]
) -> None:
    letter = add()
    before = checksums(admin)

    result = run("dlq", *command, letter, *given)

    assert (result.exit_code, len(errors(result))) == (1, 1)
    assert checksums(admin) == before


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    run: Run, ask: Ask, add: Add, admin: Admin
) -> None:
    letters = [add() for _ in range(25)]
    moved = add(thread="moved")
    admin.execute(
        "insert into runs (id, tenant, thread_id, seq, graph, status, started_at) values "
        "(gen_random_uuid(), 'acme', 'moved', 2, 'agent', 'success', now())"
    )
    gone = add(node="removed")
    add(status="resolved")
    before = checksums(admin)

    plan = ask("dlq", "replay", "--group", GROUP, "--dry-run")
    shown = run("dlq", "replay", "--group", GROUP, "--dry-run").stdout
    refused = ask("dlq", "replay", moved, gone, "--mode", "resume", "--dry-run", ends=1)

    assert {(outcome["mode"], outcome["count"]) for outcome in plan["outcomes"]} == {
        ("resume", 25), ("append", 1), ("restart", 1),
    }  # fmt: skip
    assert [letter["id"] for letter in plan["letters"]] == letters[:20]
    assert "25 would resume: the thread stands where the run failed" in shown
    assert "1 would append: the thread has moved on" in shown
    assert "1 would restart: the graph has no node removed any more" in shown
    assert "7 more are not shown" in shown
    assert {outcome["mode"] for outcome in refused["outcomes"]} == {None}
    assert checksums(admin) == before


def test_the_dry_run_is_what_is_done(ask: Ask, add: Add) -> None:
    letters = [add(), add(node="removed")]
    plan = {letter["id"]: letter["mode"] for letter in ask("dlq", "replay", *letters, "--dry-run")["letters"]}

    done = {letter["id"]: letter["replay_mode"] for letter in ask("dlq", "replay", *letters)}

    assert done == plan == {letters[0]: "resume", letters[1]: "restart"}


def test_a_filter_is_replayed_as_a_job(run: Run, ask: Ask, add: Add, admin: Admin) -> None:
    chosen = [add() for _ in range(3)]
    other = add(tenant="globex")

    job = ask("dlq", "replay", "--tenant", "acme", "--rate", "1000/s")

    assert (job["status"], job["replayed"], job["total"]) == ("done", 3, 3)
    assert {status_of(admin, letter) for letter in chosen} == {"replaying"}
    assert status_of(admin, other) == "waiting"
    (listed,) = ask("dlq", "jobs")
    assert (listed["id"], listed["filter"]) == (job["id"], {"tenant": "acme"})
    assert "tenant=acme" in run("dlq", "jobs").stdout


def test_a_filter_that_matches_nothing_is_named(run: Run, add: Add, admin: Admin) -> None:
    add(status="resolved")
    before = checksums(admin)

    for command in (["replay"], ["replay", "--dry-run"], ["discard"], ["park"]):
        for chosen in (["--tenant", "nobody"], ["--status", "resolved"]):
            result = run("dlq", *command, *chosen)
            assert (result.exit_code, result.stdout) == (1, "")
            (error,) = errors(result)
            assert "no dead letter" in error
            assert chosen[1] in error
    assert checksums(admin) == before


def test_without_ids_and_options_the_way_to_all_is_told(run: Run, add: Add) -> None:
    add()

    for command in ("replay", "discard", "park"):
        result = run("dlq", command)
        assert result.exit_code == 2
        assert "--all" in result.stderr


@pytest.mark.parametrize("command", ["replay", "discard", "park"])
@pytest.mark.parametrize("how", [[], ["--json"]], ids=["no terminal", "json"])
def test_more_than_a_hundred_need_a_yes(
    run: Run, add: Add, admin: Admin, command: str, how: list[str]
) -> None:
    letters = [add() for _ in range(101)]
    before = checksums(admin)

    for chosen in (["--all"], letters):
        refused = run("dlq", command, *chosen, *how)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "--yes" in refused.stderr
    assert checksums(admin) == before


@pytest.mark.parametrize(("answer", "ends", "discarded"), [("n", 1, 0), ("y", 0, 101)], ids=["no", "yes"])
def test_on_a_terminal_it_is_asked(
    run: Run,
    add: Add,
    admin: Admin,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    ends: int,
    discarded: int,
) -> None:
    for _ in range(101):
        add()
    monkeypatch.setattr("threadmill.cli.dead_letter_options.is_terminal", lambda: True)

    result = run("dlq", "discard", "--all", input=f"{answer}\n")

    assert result.exit_code == ends
    assert "discard 101 dead letters?" in result.stderr
    row = admin.execute("select count(*) from dead_letters where status = 'discarded'").fetchone()
    assert row == (discarded,)


def test_a_job_is_stopped_by_a_signal_and_continued(
    run: Run, ask: Ask, add: Add, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(12):
        add()
    advance = Desk._advance
    seen: list[int] = []

    def advance_and_interrupt(self: Desk, runner: Any, job: Any) -> Any:
        progress = advance(self, runner, job)
        seen.append(progress.job.replayed)
        if progress.job.replayed and len(seen) < 100:
            seen.extend([0] * 100)
            os.kill(os.getpid(), signal.SIGINT)
        return progress

    monkeypatch.setattr(Desk, "_advance", advance_and_interrupt)
    stopped = run("dlq", "replay", "--all", "--rate", "10/s", "--json")
    job = json.loads(stopped.stdout)

    assert stopped.exit_code == 1
    assert job["status"] == "stopped"
    assert 0 < job["replayed"] < 12
    assert f"threadmill dlq continue {job['id']}" in stopped.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    done = ask("dlq", "continue", job["id"])
    assert (done["status"], done["replayed"]) == ("done", 12)
    assert admin.execute("select replays, count(*) from runs group by 1").fetchall() == [(1, 12)]
    assert run("dlq", "continue", job["id"]).exit_code == 1
    assert run("dlq", "stop", job["id"]).exit_code == 1


def test_a_job_is_stopped_from_elsewhere(run: Run, ask: Ask, add: Add, settings: Settings) -> None:
    for _ in range(3):
        add()
    with Desk(settings) as desk:
        job = desk.start_job([letter.id for letter in desk.list()])

    assert ask("dlq", "stop", job.id)["status"] == "stopped"
    again = run("dlq", "stop", job.id)
    assert (again.exit_code, errors(again)) == (1, [f"error: replay job {job.id} is stopped"])
    assert ask("dlq", "continue", job.id)["status"] == "done"


def test_an_unknown_job_is_named(run: Run) -> None:
    for command in ("stop", "continue"):
        for job in (MISSING, "odd"):
            result = run("dlq", command, job)
            assert (result.exit_code, errors(result)) == (1, [f"error: no replay job {job}"])


@pytest.mark.parametrize("rate", ["0", "0/s", "-1/s", "fast", "nan", "5/week"])
def test_an_impossible_rate_is_named_and_nothing_is_done(run: Run, add: Add, admin: Admin, rate: str) -> None:
    add()
    before = checksums(admin)

    for command in (["replay", "--all", "--rate", rate], ["rate", "--", rate], ["drain", "--rate", rate]):
        result = run("dlq", *command)
        assert result.exit_code == 1
        assert "rate=" in errors(result)[0]
    assert checksums(admin) == before


# -- with a worker ----------------------------------------------------------------------------------

GRAPHS = """
    import operator
    from typing import Annotated
    from langgraph.graph import START, StateGraph
    from typing_extensions import TypedDict

    class State(TypedDict):
        words: Annotated[list[str], operator.add]

    IS_DOWN = [True]

    async def listen(state):
        return {"words": ["heard"]}

    async def speak(state):
        if IS_DOWN[0]:
            raise ConnectionError("nobody there")
        return {"words": ["said"]}

    speaker = (
        StateGraph(State)
        .add_node("listen", listen)
        .add_node("speak", speak)
        .add_edge(START, "listen")
        .add_edge("listen", "speak")
    ).compile()
"""


@pytest.fixture
def failed(
    serve: Callable[..., None], start_local: Callable[..., Any], ask: Ask, settings: Settings
) -> tuple[str, Any]:
    """The dead letter of a run whose second node has failed, and the graph's module."""
    serve(GRAPHS, speaker={"max_attempts": 1})
    worker = start_local()
    worker.listen()
    words = ["enqueue", "speaker", "--tenant", "acme", "--thread", "t", "--input", '{"words": ["hello"]}']
    ask(*words, "--wait", "--timeout", "20", ends=1)
    (letter,) = ask("dlq", "list")
    return letter["id"], worker.graphs


def test_the_state_at_the_failure_and_what_the_run_had_changed_are_shown(
    run: Run, ask: Ask, failed: tuple[str, Any]
) -> None:
    letter, _ = failed

    document = ask("dlq", "show", letter)
    shown = run("dlq", "show", letter).stdout

    assert document["node"] == "speak"
    assert document["state"]["words"] == ["hello", "heard"]
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["failed"]
    assert re.search(r"graphs\.py:\d+ in speak", shown)
    assert "what the run had changed" in shown
    assert re.search(r"^\+ /words.* ", shown, re.MULTILINE)


def test_a_trial_shows_its_outcome_and_changes_nothing_but_its_record(
    run: Run, ask: Ask, failed: tuple[str, Any], admin: Admin
) -> None:
    letter, graphs = failed
    kept = (
        "threads",
        "runs",
        "attempts",
        "dead_letters",
        "checkpoints",
        "checkpoint_blobs",
        "checkpoint_writes",
    )
    before = [_checksum(admin, table) for table in kept]

    (still_down,) = ask("dlq", "replay", letter, "--mode", "scratch", ends=1)
    graphs.IS_DOWN[0] = False
    (mended,) = ask("dlq", "replay", letter, "--mode", "scratch")
    shown = run("dlq", "replay", letter, "--mode", "scratch").stdout

    assert (still_down["status"], still_down["error"]["message"]) == ("error", "nobody there")
    assert (mended["status"], mended["nodes"], mended["letter_id"]) == ("success", ["speak"], letter)
    assert "said" in shown
    assert "kept" in shown
    assert [_checksum(admin, table) for table in kept] == before


def test_what_is_replayed_when_all_is_well_is_resolved(
    run: Run, ask: Ask, failed: tuple[str, Any], producer: Producer
) -> None:
    letter, graphs = failed
    graphs.IS_DOWN[0] = False

    (replayed,) = ask("dlq", "replay", letter)
    done = producer.wait(replayed["run_id"], tenant="acme", timeout=20)

    assert (done.status, done.output) == ("success", {"words": ["hello", "heard", "said"]})
    assert ask("dlq", "show", letter)["status"] == "resolved"
    again = run("dlq", "replay", letter)
    assert again.exit_code == 1
    assert f"dead letter {letter} is resolved" in errors(again)[0]


# -- acting -----------------------------------------------------------------------------------------


def test_letters_are_discarded_restored_and_parked_with_a_reason(ask: Ask, add: Add, admin: Admin) -> None:
    letter = add()

    for command, status in (("park", "parked"), ("discard", "discarded"), ("restore", "parked")):
        (changed,) = ask("dlq", command, letter, "--because", f"to {command}")
        assert changed["status"] == status
    assert [(action, facts["reason"]) for action, facts in actions(admin, letter)] == [
        ("park", "to park"), ("discard", "to discard"), ("restore", "to restore"),
    ]  # fmt: skip


def test_a_filter_is_discarded_as_far_as_that_can_be(run: Run, ask: Ask, add: Add, admin: Admin) -> None:
    waiting, parked, resolved = add(), add(status="parked"), add(status="resolved")
    other = add(tenant="globex")

    assert {letter["id"] for letter in ask("dlq", "discard", "--tenant", "acme")} == {waiting, parked}
    assert (status_of(admin, resolved), status_of(admin, other)) == ("resolved", "waiting")
    assert run("dlq", "discard", "--tenant", "acme").exit_code == 1


def test_of_two_operators_the_second_is_told(run: Run, add: Add) -> None:
    letter = add()
    assert run("dlq", "discard", letter).exit_code == 0

    for command in ("replay", "discard", "park"):
        result = run("dlq", command, letter)
        assert result.exit_code == 1
        assert f"dead letter {letter} is discarded" in errors(result)[0]


def test_an_input_is_edited_and_the_first_is_kept(ask: Ask, add: Add, admin: Admin) -> None:
    letter = add()

    ask("dlq", "edit", letter, "--input", '{"question": "how?"}')
    ask("dlq", "edit", letter, "--patch", '{"question": "when?"}')

    shown = ask("dlq", "show", letter)
    assert (shown["input"], shown["original_input"]) == ({"question": "when?"}, {"question": "why?"})
    assert [action for action, _ in actions(admin, letter)] == ["edit", "edit"]


def test_a_note_is_kept(run: Run, ask: Ask, add: Add) -> None:
    letter = add()

    assert run("dlq", "note", letter, "asked\nthem").exit_code == 0

    (action,) = ask("dlq", "show", letter)["actions"]
    assert (action["action"], action["facts"]) == ("note", {"text": "asked\nthem"})
    assert run("dlq", "note", MISSING, "x").exit_code == 1


# -- the drain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [("graph", "agent"), ("tenant", "acme"), ("group", GROUP)],
    ids=["graph", "tenant", "group"],
)
def test_draining_is_paused_and_goes_on(run: Run, ask: Ask, add: Add, kind: str, name: str) -> None:
    add()
    assert ask("dlq", "pause", f"--{kind}", name, "--because", "mending")["paused"] is True

    (pause,) = ask("dlq", "stats")["pauses"]
    assert (pause["kind"], pause["name"], pause["reason"]) == (kind, name, "mending")
    assert f"{kind} {name} goes on" in run("dlq", "unpause", f"--{kind}", name).stdout
    assert ask("dlq", "stats")["pauses"] == []


def test_rates_are_set_and_lifted(run: Run, ask: Ask) -> None:
    assert run("dlq", "rates").stdout == "unlimited\n"
    ask("dlq", "rate", "50/s")
    ask("dlq", "rate", "30/min", "--graph", "agent")

    rates = {(rate["kind"], rate["rate"]) for rate in ask("dlq", "rates")}
    assert rates == {("all", 50.0), ("graph", 0.5)}
    assert "30/min" in run("dlq", "rates").stdout
    ask("dlq", "rate", "none")
    assert [rate["kind"] for rate in ask("dlq", "rates")] == ["graph"]


# -- taking elsewhere -------------------------------------------------------------------------------


def test_letters_go_out_and_in_again_byte_by_byte(
    run: Run, ask: Ask, add: Add, admin: Admin, tmp_path: Path
) -> None:
    for _ in range(3):
        add()
    file = tmp_path / "letters.jsonl"

    assert ask("dlq", "export", "--output", str(file)) == {"dead_letters": 3, "output": str(file)}
    exported = file.read_text()
    assert run("dlq", "export").stdout == exported
    assert file.stat().st_mode & 0o077 == 0

    for table in ("dead_letter_actions", "replay_groups", "attempts", "dead_letters", "runs", "threads"):
        admin.execute(f"delete from {table}")
    assert ask("dlq", "import", str(file)) == {"dead_letters": 3, "known": 0}
    assert run("dlq", "export").stdout == exported
    assert [group["fingerprint"] for group in ask("dlq", "groups")] == [GROUP]
    assert ask("dlq", "import", str(file)) == {"dead_letters": 0, "known": 3}


def test_a_file_that_is_cut_off_is_refused_as_a_whole(
    run: Run, add: Add, admin: Admin, tmp_path: Path
) -> None:
    for _ in range(3):
        add()
    exported = run("dlq", "export").stdout
    for table in ("dead_letters", "runs", "threads"):
        admin.execute(f"delete from {table}")
    before = checksums(admin)
    file = tmp_path / "letters.jsonl"

    for content in (exported[: len(exported) * 2 // 3], exported + "{", "no json"):
        file.write_text(content)
        result = run("dlq", "import", str(file))
        assert (result.exit_code, len(errors(result))) == (1, 1)
    assert checksums(admin) == before


def test_an_export_that_cannot_be_written_leaves_no_file(run: Run, add: Add, tmp_path: Path) -> None:
    add()

    assert run("dlq", "export", "--output", str(tmp_path / "missing" / "letters.jsonl")).exit_code == 2
    assert list(tmp_path.glob("*.jsonl*")) == []


# -- held threads -----------------------------------------------------------------------------------


def test_held_threads_say_since_when_by_what_and_how_many_wait(
    run: Run, ask: Ask, add: Add, admin: Admin
) -> None:
    letter = add(thread="held")
    add(thread="free")
    admin.execute(
        "insert into held_lanes (tenant, thread_id, seq, letter_id, since, until) "
        "select tenant, thread_id, seq, id, now() - interval '1 h', now() + interval '1 h' "
        "from dead_letters where id = %s",
        [letter],
    )
    for seq in (2, 3):
        admin.execute(
            "insert into runs (id, tenant, thread_id, seq, graph) values "
            "(gen_random_uuid(), 'acme', 'held', %s, 'agent')",
            [seq],
        )

    (thread,) = ask("threads", "list", "--held")
    assert (thread["thread_id"], thread["held_by"], thread["held_runs"]) == ("held", letter, 2)
    assert thread["held_since"] < thread["held_until"]
    assert [t["held_by"] for t in ask("threads", "list")] == [None, letter]
    assert letter in run("threads", "list", "--held").stdout

    shown = run("threads", "show", "held", "--tenant", "acme").stdout
    assert f"dead letter {letter}" in shown
    assert "2 runs wait" in shown
    run_id = ask("threads", "show", "held", "--tenant", "acme")["waits_for"]
    assert f"for dead letter {letter}, which holds its thread" in run("runs", "show", run_id).stdout
    assert "its thread, since" in run("dlq", "show", letter).stdout


def test_a_runs_attempts_say_in_which_replay_they_were(run: Run, ask: Ask, add: Add, admin: Admin) -> None:
    letter = add()
    admin.execute("update runs set replays = 2, replay_mode = 'append'")
    for attempt, replay in ((1, 0), (2, 1), (3, 2)):
        admin.execute(
            "insert into attempts (run_id, attempt, tenant, outcome, replay) "
            "select id, %s, tenant, 'failed', %s from runs",
            [attempt, replay],
        )

    run_id = ask("dlq", "show", letter)["run_id"]
    shown = run("runs", "show", run_id, "--attempts").stdout
    document = ask("runs", "show", run_id, "--attempts")

    assert re.search(r"replays +2, at last by append", shown)
    assert "in replay 1\n" in shown
    assert "in replay 2 (append)" in shown
    assert [attempt["replay"] for attempt in document["attempts"]] == [0, 1, 2]
    assert (document["replays"], document["replay_mode"]) == (2, "append")


def test_a_run_chooses_for_itself_whether_its_dead_letter_holds_its_thread(
    ask: Ask, failed: tuple[str, Any]
) -> None:
    given = ["--tenant", "acme", "--input", '{"words": ["hello"]}', "--wait", "--timeout", "20"]

    for thread, choice in (("a", "hold"), ("b", "skip")):
        ask("enqueue", "speaker", "--thread", thread, *given, "--on-dead-letter", choice, ends=1)

    assert [thread["thread_id"] for thread in ask("threads", "list", "--held")] == ["a"]
