"""The functions of a graph's policy that are asked about the record of a failure."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from threadmill.core.errors import GraphConfigInvalid, GraphLoadFailed
from threadmill.graphs import Registry, check


def hooked(project: Any, source: str, **policy: str) -> Registry:
    """The registry of a graph with this policy, and of one that has none."""
    project.agent("")
    project.write("hooks.py", source)
    return project.read(
        graphs={"agent": "./agent.py:graph", "plain": "./agent.py:graph"},
        threadmill={"graphs": {"agent": policy}},
    )


REDACT = {"redact": "./hooks.py:redact"}
FINGERPRINT = {"fingerprint": "./hooks.py:name"}


def test_a_graphs_own_functions_are_asked_and_a_graph_without_has_none(project: Any) -> None:
    source = """
        def redact(text): return text.replace("ours", "***")
        def name(error, node): return f"{type(error).__name__} in {node}"
    """
    registry = hooked(project, source, **REDACT, **FINGERPRINT)
    redactor, fingerprinter = registry.redactor("agent"), registry.fingerprinter("agent")
    assert redactor is not None and fingerprinter is not None
    assert redactor("is ours") == "is ***"
    assert fingerprinter(ValueError(), "ask") == "ValueError in ask"
    assert registry.redactor("agent") is redactor
    assert registry.fingerprinter("agent") is fingerprinter
    assert registry.redactor("plain") is None
    assert registry.fingerprinter("plain") is None


@pytest.mark.parametrize(
    ("source", "event"),
    [
        ("def redact(text): raise KeyError(text)\ndef name(error, node): raise KeyError(error)", "failed"),
        ("def redact(text): raise SystemExit\ndef name(error, node): raise SystemExit", "failed"),
        ("def redact(text): return None\ndef name(error, node): return 3", "nonsense"),
        ("def redact(text): return b''\ndef name(error, node): return b''", "nonsense"),
    ],
)
def test_a_function_that_fails_is_told_once_and_answers_nothing(
    project: Any, source: str, event: str
) -> None:
    registry = hooked(project, source, **REDACT, **FINGERPRINT)
    redactor, fingerprinter = registry.redactor("agent"), registry.fingerprinter("agent")
    assert redactor is not None and fingerprinter is not None
    with capture_logs() as logs:
        for text in ("a user's words", "more of them"):
            assert redactor(text) is None
            assert fingerprinter(ValueError(text), "ask") is None
    assert [(log["event"], log["owner"]) for log in logs] == [
        (f"redact.{event}", "agent"),
        (f"fingerprint.{event}", "agent"),
    ]
    assert "words" not in str(logs)


@pytest.mark.parametrize(
    ("policy", "source", "reason"),
    [
        (REDACT, "", r"\(hooks.py\): redact: holds nothing named 'redact'"),
        (REDACT, "redact = 3", r"redact: TypeError: must be a plain function, this is int"),
        (
            REDACT,
            "async def redact(text): ...",
            r"redact: TypeError: must be a plain function, this is an asy",
        ),
        (REDACT, "def redact(): ...", r"redact: TypeError: must take one argument, the text"),
        (
            FINGERPRINT,
            "def name(error): ...",
            r"fingerprint: TypeError: must take 2 arguments, the exception",
        ),
        (FINGERPRINT, "1 / 0", r"\(hooks.py:1\): fingerprint: ZeroDivisionError: division by zero"),
    ],
)
async def test_a_function_that_cannot_be_used_is_named_before_a_run_fails(
    project: Any, policy: dict[str, str], source: str, reason: str
) -> None:
    registry = hooked(project, source, **policy)
    with pytest.raises(GraphLoadFailed, match=reason):
        (registry.redactor if policy is REDACT else registry.fingerprinter)("agent")
    agent, plain = await check(registry)
    assert not agent.ok
    assert plain.ok


@pytest.mark.parametrize("key", ["redact", "fingerprint"])
def test_a_value_that_names_no_function_is_named_with_its_line(project: Any, key: str) -> None:
    text = '{"graphs": {"a": "./a.py:graph"},\n"threadmill": {"defaults": {\n"%s": "hooks"}}}' % key  # noqa: UP031
    with pytest.raises(GraphConfigInvalid) as error:
        Registry.read(project.write("langgraph.json", text))
    assert str(error.value).startswith(f"langgraph.json: line 3: threadmill.defaults.{key}: 'hooks' must be ")


def test_the_functions_of_an_unknown_graph_are_refused(project: Any) -> None:
    for ask in (project.agent("").redactor, project.agent("").fingerprinter, project.agent("").project):
        with pytest.raises(GraphLoadFailed, match="not there; it names agent"):
            ask("other")
