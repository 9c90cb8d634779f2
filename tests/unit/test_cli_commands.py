"""The command line as such: its tree, its errors and exit statuses. No service runs here."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from threadmill.cli import flower
from threadmill.cli.main import app
from threadmill.core.errors import SettingsInvalid
from threadmill.core.settings import Settings

ROOT = typer.main.get_command(app)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(ROOT))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """Runs a command line in an empty folder, where no service is to be found."""
    monkeypatch.chdir(tmp_path)
    for name in ("THREADMILL_DATABASE_URL", "THREADMILL_BROKER_URL", "THREADMILL_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield lambda *arguments: CliRunner().invoke(app, list(arguments))
    logging.root.handlers[:] = handlers  # a command sends the logs to a stream that is gone by now
    logging.root.setLevel(level)


def test_all_commands_are_there() -> None:
    assert set(COMMANDS) == {
        "dev", "demo", "worker", "flower", "enqueue", "doctor",
        "runs list", "runs show", "runs stream", "runs cancel",
        "threads list", "threads show", "threads history",
        "dlq list", "dlq groups", "dlq show", "dlq stats",
        "dlq replay", "dlq jobs", "dlq stop", "dlq continue",
        "dlq edit", "dlq discard", "dlq restore", "dlq park", "dlq note",
        "dlq export", "dlq import",
        "dlq pause", "dlq unpause", "dlq rates", "dlq rate", "dlq drain", "dlq watch",
        "graphs list", "graphs check", "graphs set", "graphs pause", "graphs resume",
        "tenants list", "tenants set", "tenants pause", "tenants resume",
        "db upgrade", "db status", "db downgrade",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_json_if_asked_and_says_by_an_example_how_to_use_it(name: str) -> None:
    command = COMMANDS[name]

    assert "--json" in {option for parameter in command.params for option in parameter.opts}
    assert command.help
    assert f"threadmill {name}" in command.epilog


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.endswith((" list", "history"))])
def test_every_list_comes_in_pages(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}

    assert {"--limit", "--after"} <= options


def test_the_version_is_told(run: Callable[..., Result]) -> None:
    result = run("--version")

    assert result.exit_code == 0
    assert result.stdout.startswith("threadmill ")


def test_a_named_error_ends_on_stderr_with_status_1(run: Callable[..., Result]) -> None:
    result = run("runs", "list")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: THREADMILL_DATABASE_URL is not set")


def test_with_json_a_named_error_is_an_object_on_stderr_too(run: Callable[..., Result]) -> None:
    result = run("runs", "list", "--json")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert json.loads(result.stderr.splitlines()[-1])["error"]["type"] == "ServicesNotFound"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["runs", "list", "--limit", "0"],
        ["enqueue", "g", "--tenant", "t"],
        ["enqueue", "g", "--tenant", "t", "--thread", "x", "--input", "{no json"],
        ["enqueue", "g", "--tenant", "t", "--thread", "x", "--input", "@missing.json"],
        ["enqueue", "g", "--tenant", "t", "--thread", "x", "--deadline", "tomorrow"],
        ["dlq", "list", "--since", "yesterday"],
        ["dlq", "replay"],
        ["dlq", "replay", "--all", "0199c0de-0000-7000-8000-000000000000"],
        ["dlq", "replay", "--all", "--mode", "scratch"],
        ["dlq", "replay", "--all", "--patch", "{}"],
        ["dlq", "replay", "--all", "--mode", "odd"],
        ["dlq", "discard"],
        ["dlq", "park", "--because", "why not"],
        ["dlq", "edit", "0199c0de-0000-7000-8000-000000000000"],
        ["dlq", "edit", "0199c0de-0000-7000-8000-000000000000", "--input", "{}", "--patch", "{}"],
        ["dlq", "pause"],
        ["dlq", "unpause", "--graph", "g", "--tenant", "t"],
        ["dlq", "import", "missing.jsonl"],
        ["db", "downgrade", "base", "--json"],
    ],
    ids=" ".join,
)
def test_bad_usage_ends_with_status_2(
    run: Callable[..., Result], arguments: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("THREADMILL_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("THREADMILL_BROKER_URL", "redis://127.0.0.1:1/0")

    assert run(*arguments).exit_code == 2


def test_an_impossible_setting_is_named(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREADMILL_CONCURRENCY", "many")

    result = run("doctor")

    assert result.exit_code == 1
    assert "concurrency" in result.stderr


def test_a_database_url_that_is_none_is_named_without_its_password(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADMILL_DATABASE_URL", "user:hunter2@host/database")
    monkeypatch.setenv("THREADMILL_BROKER_URL", "redis://127.0.0.1:1/0")

    result = run("runs", "list")

    assert result.exit_code == 1
    assert "database_url" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["demo"], "dev"), (["graphs", "check"], "worker"), (["worker"], "worker")],
    ids=["demo", "graphs check", "worker"],
)
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    arguments: list[str], extra: str, tmp_path: Path
) -> None:
    (tmp_path / "langgraph.json").write_text('{"graphs": {"g": "./g.py:g"}}')
    program = "import sys; sys.modules['langgraph'] = None\nfrom threadmill.cli.main import main\nmain()"
    environment = {
        "THREADMILL_DATABASE_URL": "postgresql://127.0.0.1:1/none",
        "THREADMILL_BROKER_URL": "redis://127.0.0.1:1/0",
    }

    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=False, cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip

    assert result.returncode == 1
    assert (
        result.stderr
        == f'error: this needs `pip install "threadmill[{extra}]"` (langgraph is not installed)\n'
    )


def test_the_command_line_starts_without_langgraph() -> None:
    program = (
        "import sys, threadmill.cli.main\n"
        "heavy = {'langgraph', 'langchain_core', 'flower', 'bm25s'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )

    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert result.stderr == ""
    assert result.returncode == 0


def test_dev_without_graphs_says_what_to_do(run: Callable[..., Result]) -> None:
    result = run("dev")

    assert result.exit_code == 1
    assert "langgraph.json: is not there" in result.stderr
    assert "--workers 0" in result.stderr


def test_a_worker_without_graphs_says_what_to_do(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADMILL_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("THREADMILL_BROKER_URL", "redis://127.0.0.1:1/0")

    result = run("worker")

    assert result.exit_code == 1
    assert "langgraph.json: is not there" in result.stderr


def test_graphs_check_says_of_each_graph_whether_it_loads(run: Callable[..., Result]) -> None:
    Path("langgraph.json").write_text(
        json.dumps({"graphs": {"good": "./good.py:graph", "bad": "./bad.py:graph"}})
    )
    Path("good.py").write_text(
        "from typing import TypedDict\n"
        "from langgraph.graph import StateGraph\n"
        "class State(TypedDict):\n    word: str\n"
        "print('imported')\n"
        "graph = StateGraph(State).add_node('n', lambda state: {}).set_entry_point('n')\n"
    )
    Path("bad.py").write_text("graph = 1 / 0\n")

    result = run("graphs", "check", "--json")

    assert result.exit_code == 1
    good, bad = json.loads(result.stdout)
    assert (good["name"], good["ok"], good["channels"]) == ("good", True, ["word"])
    assert (bad["name"], bad["ok"]) == ("bad", False)
    assert "bad.py:1" in bad["error"]
    assert "ZeroDivisionError" in bad["error"]


def test_graphs_list_needs_no_ledger_for_what_is_in_the_file(run: Callable[..., Result]) -> None:
    graphs = dict.fromkeys(("a", "b", "c"), "./g.py:graph")
    Path("langgraph.json").write_text(
        json.dumps({"graphs": graphs, "threadmill": {"graphs": {"b": {"max_attempts": 7}}}})
    )

    result = run("graphs", "list", "--json", "--after", "a", "--limit", "1")

    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    assert (found["name"], found["location"], found["announced"]) == ("b", "./g.py:graph", False)
    assert found["policy"]["max_attempts"] == 7


class FlowerOnATakenPort:
    """Stands for Flower's application: every port but 0 is taken."""

    def __init__(self) -> None:
        self.options = type("Options", (), {})()

    def start_http_server(self) -> int:
        if self.options.port:
            raise OSError(98, "Address already in use")
        return 43210


def test_flower_takes_another_port_only_if_it_may() -> None:
    application, settings = FlowerOnATakenPort(), Settings()

    with pytest.raises(SettingsInvalid, match=r"127\.0\.0\.1:5555: Address already in use"):
        flower._listen(application, settings, any_port=False)

    assert flower._listen(application, settings, any_port=True) == 43210
