"""Which failures are one group."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadmill.core.errors import RunTimeout, WorkerLost
from threadmill.graphs import Project
from threadmill.workers.failure import describe

# A client as clients are: its own error, raised from whatever the network said. It is no own code.
CLIENT = """
    class Unreachable(Exception): pass
    class Timeout(Unreachable): pass

    def get(reason, kind=Unreachable):
        try:
            raise reason
        except Exception as error:
            raise kind("no answer from 10.0.0.%d" % id(error)) from error

    def retried(call, times=3):
        for turn in range(times):
            try:
                return call()
            except Exception as error:
                last = error
        raise Unreachable("given up") from last
"""
APP = """
    import asyncio
    from client import Unreachable, Timeout, get, retried

    class Failed(Exception): pass

    def search(reason, kind=Unreachable): return get(reason, kind)
    def fetch(reason, kind=Unreachable): return get(reason, kind)

    def node(reason, kind=Unreachable): return search(reason, kind)
    def other(reason): return fetch(reason)

    def wrapped(reason):
        try:
            node(reason)
        except Exception as error:
            raise Failed("it failed") from error

    def unlinked(call):
        try:
            call()
        except Exception:
            raise Failed("it failed")

    def bug(_=None): return {}["missing"]
    def again(depth, reason): return search(reason) if depth == 0 else again(depth - 1, reason)
    def listed(reason): return [[(lambda: search(r))() for _ in [1]] for r in [reason]]
    def with_retries(call): return retried(call)

    async def one(reason): await asyncio.sleep(0); search(reason)
    async def two(reason): await asyncio.sleep(0); fetch(reason)

    def together(*reasons):
        async def run():
            async with asyncio.TaskGroup() as group:
                for number, reason in enumerate(reasons):
                    group.create_task(one(reason) if number % 2 == 0 else two(reason))
        asyncio.run(run())
"""


class Machine:
    """Where the same code is deployed, in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, before: str = "") -> None:
        self.folder = folder / "srv" / "project"
        library = folder / "venv" / "site-packages"
        self.folder.mkdir(parents=True)
        library.mkdir(parents=True)
        (library / "client.py").write_text(before + textwrap.dedent(CLIENT))
        (self.folder / "app.py").write_text(before + textwrap.dedent(APP))
        self.project = Project(self.folder)
        names: dict[str, Any] = {"client": library / "client.py", "app": self.folder / "app.py"}
        with monkeypatch.context() as patch:
            for name, file in names.items():
                spec = importlib.util.spec_from_file_location(name, file)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                patch.setitem(__import__("sys").modules, name, module)
                spec.loader.exec_module(module)
                setattr(self, name, module)

    app: Any
    client: Any

    def fingerprint(self, call: Callable[..., Any], *arguments: object, node: str = "ask") -> str:
        with pytest.raises(BaseException) as caught:
            call(*arguments)
        error = caught.value.with_traceback(caught.tb.tb_next)  # without this function of the test's own
        return describe(error, "chat", node, own=self.project).fingerprint


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@given(st.text(), st.text())
def test_a_message_never_counts(one: str, other: str) -> None:
    of = [describe(ValueError(text), "chat", "ask").fingerprint for text in (one, other)]
    assert of[0] == of[1]


def test_lines_that_moved_and_other_machines_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [
        Machine(tmp_path / "one", monkeypatch),
        Machine(tmp_path / "two" / "deeper", monkeypatch, "# a release later\n" * 7),
    ]
    assert len({m.fingerprint(m.app.node, OSError(111)) for m in machines}) == 1


def test_a_fingerprint_is_the_same_in_every_process(machine: Machine) -> None:
    """Letters of years are grouped by it: whoever changes it changes this line, and knows."""
    assert machine.fingerprint(machine.app.node, OSError(111)) == "8dfa5843e57588a0"


def test_what_the_client_met_beneath_does_not_count(machine: Machine) -> None:
    reasons = [ConnectionRefusedError(111), TimeoutError(), OSError("Name or service not known")]
    assert len({machine.fingerprint(machine.app.node, reason) for reason in reasons}) == 1


@pytest.mark.parametrize("difference", ["node", "type", "function"])
def test_another_node_type_or_own_function_is_another_group(machine: Machine, difference: str) -> None:
    app, reason = machine.app, OSError(111)
    usual = machine.fingerprint(app.node, reason)
    match difference:
        case "node":
            unusual = machine.fingerprint(app.node, reason, node="answer")
        case "type":
            unusual = machine.fingerprint(app.node, reason, machine.client.Timeout)
        case _:
            unusual = machine.fingerprint(app.other, reason)
    assert usual != unusual
    assert usual == machine.fingerprint(app.node, OSError(112))


def test_another_graph_is_another_group() -> None:
    assert describe(ValueError(), "a", "b").fingerprint != describe(ValueError(), "ab", "").fingerprint


def test_a_bug_and_an_outage_under_one_wrapper_are_two_groups(machine: Machine) -> None:
    app = machine.app
    outage = machine.fingerprint(app.unlinked, lambda: app.search(OSError(111)))
    assert outage == machine.fingerprint(app.unlinked, lambda: app.search(TimeoutError()))
    assert outage != machine.fingerprint(app.unlinked, app.bug)


def test_a_bug_and_an_outage_under_a_librarys_retries_are_two_groups(machine: Machine) -> None:
    app = machine.app
    outage = machine.fingerprint(app.with_retries, lambda: app.search(OSError(111)))
    assert outage != machine.fingerprint(app.with_retries, lambda: app.search(OSError(1), KeyError))


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_the_depth_of_a_recursion_does_not_count(machine: Machine, depth: int) -> None:
    app = machine.app
    assert machine.fingerprint(app.again, depth, OSError(1)) == machine.fingerprint(app.again, 9, OSError(1))


def test_a_comprehension_counts_alike_in_every_version_of_python(machine: Machine) -> None:
    with pytest.raises(machine.client.Unreachable) as caught:
        machine.app.listed(OSError(1))
    names = [frame.name for frame in caught.traceback]
    # 3.11 has a frame for it, 3.12 has none; the group is that of the functions around it.
    expected = [name for name in names if name != "<listcomp>"]
    assert expected[-4:] == ["listed", "<lambda>", "search", "get"]
    assert machine.fingerprint(machine.app.listed, OSError(1)) == "8cf4c05756030b8d"


def test_which_members_of_a_group_failed_together_does_not_count(machine: Machine) -> None:
    app = machine.app
    both = [machine.fingerprint(app.together, OSError(n), OSError(n), OSError(n)) for n in range(3)]
    assert len(set(both)) == 1
    first = machine.fingerprint(app.together, OSError(1))  # without the other own function
    assert first == both[0]
    assert first != machine.fingerprint(app.node, OSError(1))


def test_a_ring_and_a_chain_of_thousands_have_a_fingerprint() -> None:
    first, second = ValueError("a"), TypeError("b")
    first.__cause__, second.__cause__ = second, first
    assert len(describe(first, "chat", None).fingerprint) == 16
    error = ValueError()
    for _ in range(5_000):
        outer = ValueError()
        outer.__cause__ = error
        error = outer
    assert describe(error, "chat", "ask").fingerprint == describe(ValueError(), "chat", "ask").fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WorkerLost(3, "SIGKILL"), WorkerLost(5, "OOM")),
        (RunTimeout("deadline", 0), RunTimeout("deadline", 7.5)),
    ],
)
def test_what_has_no_traceback_is_grouped_by_its_type(one: Exception, other: Exception) -> None:
    fingerprint = describe(one, "chat", "ask").fingerprint
    assert fingerprint == describe(other, "chat", "ask").fingerprint
    assert fingerprint != describe(other, "chat", None).fingerprint


@pytest.mark.parametrize("hook", [lambda error, node: None, lambda error, node: "", lambda error: "x"])
def test_a_hook_that_names_no_group_leaves_threadmills(hook: Any) -> None:
    failure = describe(ValueError("a"), "chat", "ask", fingerprint=hook)
    assert failure.fingerprint == describe(ValueError("b"), "chat", "ask").fingerprint


def test_a_hook_names_a_group_whatever_the_name_is() -> None:
    names = iter(["a", "a", "\ud800", "\x00", "b" * 100_000])
    found = [
        describe(e, "chat", None, fingerprint=lambda error, node: next(names)).fingerprint
        for e in (ValueError(), TypeError(), KeyError(), OSError(), OSError())
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert {len(name) for name in found} == {16}
