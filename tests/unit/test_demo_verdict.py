"""The demo's verdict: it holds for what went well, and for each thing that can go wrong it does not."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from threadmill.cli import demo
from threadmill.cli.demo_verdict import Accident, Attempt, Check, Evidence, Question, Sight, judge
from threadmill.cli.demo_view import verdict_view
from threadmill.dlq import DeadLetter
from threadmill.producers import Run
from threadmill.producers.run import RunError

TENANTS = ("acme", "globex")
THREADS = ("conversation-1", "conversation-2")
TURNS = 3
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

PLACE = ("acme", "conversation-1")


def after(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


def run_of(question: Question, seq: int) -> Run:
    return Run(
        id=question.run_id,
        tenant=question.tenant,
        thread_id=question.thread_id,
        graph="librarian",
        status="success",
        seq=seq,
        attempt=1,
        created_at=START,
        started_at=after(seq),
        finished_at=after(seq + 0.5),
        output=None,
        error=None,
        metadata={},
    )


def letter_of(question: Question) -> DeadLetter:
    return DeadLetter(
        id=f"letter of {question.run_id}",
        run_id=question.run_id,
        tenant=question.tenant,
        thread_id=question.thread_id,
        seq=1,
        graph="librarian",
        graph_version="1",
        topology_hash="1",
        versions={},
        reason="exhausted",
        error=RunError("HTTPStatusError", "503", "cite"),
        exception_type="HTTPStatusError",
        exceptions=(),
        traceback=None,
        node="cite",
        task=None,
        next_nodes=("cite",),
        base_checkpoint_id=None,
        checkpoint_id=None,
        fingerprint="",
        original_input=None,
        replays=1,
        replay_mode="resume",
        replay_why=None,
        replayed_at=START,
        status="resolved",
        next_replay_at=None,
        created_at=START,
        updated_at=START,
    )


def turn_of(question: Question) -> dict[str, Any]:
    return {"question": question.text, "citations": [{"module": module} for module in question.modules]}


def made_before(attempt: Attempt, number: int, outcome: str) -> Attempt:
    """An earlier attempt of the same run, which was over in time."""
    began = attempt.started_at - datetime.timedelta(seconds=0.4 - 0.1 * number)
    ended = began + datetime.timedelta(seconds=0.05)
    return attempt._replace(number=number, outcome=outcome, started_at=began, ended_at=ended)


@pytest.fixture
def evidence() -> Evidence:
    """Two tenants with two threads of three questions each.

    One run failed, was replayed, failed for a moment and was retried; another was under way on a worker that
    was killed.
    """
    asked = [
        (Question(f"{tenant}/{thread}/{n}", tenant, thread, f"{tenant} {thread} {n}?", frozenset({"csv"})), n)
        for tenant in TENANTS
        for thread in THREADS
        for n in range(1, TURNS + 1)
    ]
    questions = [question for question, _ in asked]
    runs = [run_of(question, seq) for question, seq in asked]
    attempts = [
        Attempt(q.run_id, q.place, seq, after(seq), after(seq + 0.5), 1, "success") for q, seq in asked
    ]
    runs[1] = replace(runs[1], attempt=3)
    attempts[1] = attempts[1]._replace(number=3)
    attempts += [made_before(attempts[1], 1, "failed"), made_before(attempts[1], 2, "failed")]
    runs[3] = replace(runs[3], attempt=2)
    attempts[3] = attempts[3]._replace(number=2)
    attempts.append(made_before(attempts[3], 1, "lost"))
    return Evidence(
        questions=questions,
        runs=runs,
        attempts=attempts,
        letters=[letter_of(questions[1])],
        accident=Accident("worker-1", after(0.75), [(questions[3].run_id, 1)]),
        turns={
            (tenant, thread): [turn_of(q) for q in questions if q.place == (tenant, thread)]
            for tenant in TENANTS
            for thread in THREADS
        },
        sights=[Sight(tenant, "runs", own=6, foreign=0) for tenant in TENANTS],
    )


def failed(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    """The faults of the checks that do not hold."""
    return {check.name: check.faults for check in judge(evidence) if not check.holds}


def with_run(evidence: Evidence, index: int, **changes: Any) -> Evidence:
    runs = list(evidence.runs)
    runs[index] = replace(runs[index], **changes)
    return replace(evidence, runs=runs)


def with_turns(evidence: Evidence, change: Callable[[list[Any]], list[Any]]) -> Evidence:
    """The evidence with other turns in the state of PLACE."""
    return replace(evidence, turns={**evidence.turns, PLACE: change(list(evidence.turns[PLACE]))})


def test_what_went_well_holds_and_says_its_figures(evidence: Evidence) -> None:
    checks = judge(evidence)

    assert [check for check in checks if not check.holds] == []
    assert {check.name: check.found for check in checks} == {
        "Every run succeeded": "12 of 12",
        "None was lost": "12 enqueued, 12 finished, 12 in a state",
        "None is in a state twice": "12 turns in 4 threads, 0 doubled",
        "The order was kept": "4 threads, 0 out of order",
        "One attempt at a time": "15 attempts, 0 overlaps",
        "Tenants are isolated": "12 own rows seen, 0 foreign; 2 shared ids",
        "What failed was tried again": "2 attempts failed: 1 retried, 1 buried",
        "Dead letters are resolved": "1 appeared, 1 resolved, by 1 replays",
        "A killed worker cost nothing": "1 runs under way, 1 resumed within 0.2 s",
        "Answers are right": "12 of 12; 12 did not name their module",
    }


def test_a_run_that_did_not_succeed_fails(evidence: Evidence) -> None:
    broken = with_run(evidence, 0, status="error")

    assert failed(broken) == {
        "Every run succeeded": ("run acme/conversation-1/1 of acme/conversation-1 is error",)
    }


def test_a_run_that_is_not_in_the_ledger_is_lost(evidence: Evidence) -> None:
    broken = replace(evidence, runs=evidence.runs[1:])

    assert failed(broken) == {
        "None was lost": ("run acme/conversation-1/1 of acme/conversation-1 is not in the ledger",)
    }


def test_a_run_that_did_not_finish_is_lost(evidence: Evidence) -> None:
    broken = with_run(evidence, 0, status="pending")

    assert failed(broken)["None was lost"] == (
        "run acme/conversation-1/1 of acme/conversation-1 did not finish",
    )


def test_a_run_that_left_nothing_in_the_state_is_lost(evidence: Evidence) -> None:
    faults = failed(with_turns(evidence, lambda turns: turns[1:]))

    assert list(faults) == ["None was lost", "Answers are right"]
    assert "left nothing in the state of acme/conversation-1" in faults["None was lost"][0]


def test_an_empty_ledger_is_no_success(evidence: Evidence) -> None:
    nothing = Evidence(questions=[], runs=[], attempts=[], letters=[], turns={}, sights=[], accident=None)

    assert list(failed(nothing)) == [
        "Every run succeeded",
        "Tenants are isolated",
        "What failed was tried again",
        "Dead letters are resolved",
        "A killed worker cost nothing",
    ]


def test_a_question_that_is_twice_in_a_state_fails(evidence: Evidence) -> None:
    broken = with_turns(evidence, lambda turns: [*turns, turns[0]])

    assert failed(broken) == {
        "None is in a state twice": (
            "'acme conversation-1 1?' is 2 times in the state of acme/conversation-1, not 1",
        )
    }


def test_turns_in_another_order_fail(evidence: Evidence) -> None:
    broken = with_turns(evidence, lambda turns: [turns[1], turns[0], turns[2]])

    assert failed(broken) == {
        "The order was kept": ("the turns of acme/conversation-1 are not in the order of the questions",)
    }


def test_runs_that_were_numbered_in_another_order_fail(evidence: Evidence) -> None:
    broken = with_run(with_run(evidence, 0, seq=2), 1, seq=1)

    assert failed(broken) == {
        "The order was kept": (
            "the runs of acme/conversation-1 were numbered in another order than enqueued",
        )
    }


def test_a_run_that_started_before_the_one_ahead_of_it_fails(evidence: Evidence) -> None:
    early = evidence.attempts[2]._replace(started_at=after(0.1), ended_at=after(0.2))
    broken = replace(evidence, attempts=[*evidence.attempts[:2], early, *evidence.attempts[3:]])

    assert failed(broken) == {
        "The order was kept": ("the runs of acme/conversation-1 were not started in order",)
    }


def test_attempts_that_overlap_on_one_thread_fail(evidence: Evidence) -> None:
    long = evidence.attempts[0]._replace(ended_at=after(1.75))
    broken = replace(evidence, attempts=[long, *evidence.attempts[1:]])

    assert failed(broken) == {
        "One attempt at a time": (
            "runs acme/conversation-1/1 and acme/conversation-1/2 ran at once on acme/conversation-1",
        )
    }


def test_every_attempt_that_falls_into_a_long_one_is_named(evidence: Evidence) -> None:
    first, second, third = evidence.attempts[:3]
    long = first._replace(ended_at=after(9))
    broken = replace(evidence, attempts=[long, second, third, *evidence.attempts[3:]])

    assert len(failed(broken)["One attempt at a time"]) == 4


def test_an_attempt_that_left_no_record_fails(evidence: Evidence) -> None:
    broken = with_run(evidence, 0, attempt=2)

    assert failed(broken) == {
        "One attempt at a time": (
            "run acme/conversation-1/1 of acme/conversation-1 had 2 attempts, and 1 left a record",
        )
    }


def test_a_tenant_that_sees_rows_of_another_fails(evidence: Evidence) -> None:
    broken = replace(evidence, sights=[Sight("globex", "rows of checkpoints", own=9, foreign=4)])

    assert failed(broken) == {"Tenants are isolated": ("globex sees 4 rows of checkpoints of other tenants",)}


def test_a_tenant_that_sees_nothing_at_all_proves_nothing(evidence: Evidence) -> None:
    blind = replace(evidence, sights=[Sight("globex", "runs", own=0, foreign=0)])

    assert failed(blind) == {"Tenants are isolated": ("globex does not even see runs of its own",)}
    assert list(failed(replace(evidence, sights=[]))) == ["Tenants are isolated"]


def test_another_tenants_question_in_a_state_fails(evidence: Evidence) -> None:
    foreign = evidence.turns[("globex", "conversation-1")][0]
    broken = with_turns(evidence, lambda turns: [*turns, foreign])

    assert failed(broken) == {
        "Tenants are isolated": (
            "acme/conversation-1 holds a question that was asked elsewhere: 'globex conversation-1 1?'",
        )
    }


@pytest.mark.parametrize("status", ["waiting", "replaying", "parked", "discarded"])
def test_a_dead_letter_that_is_not_resolved_fails(status: str, evidence: Evidence) -> None:
    broken = replace(evidence, letters=[replace(evidence.letters[0], status=status)])

    (fault,) = failed(broken).pop("Dead letters are resolved")

    assert f"is {status}: HTTPStatusError in cite" in fault


def test_an_outage_that_nobody_felt_shows_nothing(evidence: Evidence) -> None:
    unharmed = [attempt for attempt in evidence.attempts if attempt.outcome != "failed"]

    faults = failed(replace(evidence, letters=[], attempts=unharmed))

    assert faults["Dead letters are resolved"] == ("the outage made no dead letter, so nothing was shown",)
    assert faults["What failed was tried again"] == ("the outage failed no attempt, so nothing was shown",)


def test_an_attempt_that_failed_and_was_the_last_fails(evidence: Evidence) -> None:
    broken = with_run(evidence, 1, status="error")

    assert failed(broken)["What failed was tried again"] == (
        "attempt 1 of run acme/conversation-1/2 failed, and none after it succeeded",
        "attempt 2 of run acme/conversation-1/2 failed, and none after it succeeded",
    )


def test_a_worker_that_held_nothing_when_it_was_killed_shows_nothing(evidence: Evidence) -> None:
    assert evidence.accident is not None
    idle = replace(evidence, accident=evidence.accident._replace(held=[]))

    assert failed(idle) == {"A killed worker cost nothing": ("worker-1 held no run, so nothing was shown",)}


def test_a_run_that_went_down_with_its_worker_fails(evidence: Evidence) -> None:
    run_id = "acme/conversation-2/1"
    without = [a for a in evidence.attempts if (a.run_id, a.number) != (run_id, 2)]
    forgotten = [a for a in evidence.attempts if a.outcome != "lost"]

    assert failed(replace(evidence, attempts=without))["A killed worker cost nothing"] == (
        f"run {run_id}, which worker-1 held, did not go on elsewhere",
    )
    assert failed(replace(evidence, attempts=forgotten))["A killed worker cost nothing"] == (
        f"attempt 1 of run {run_id}, which worker-1 held, is not lost",
    )


@pytest.mark.parametrize("modules", [[], ["json"], ["csv", "json"]])
def test_an_answer_that_cites_other_modules_fails(modules: list[str], evidence: Evidence) -> None:
    wrong = {"question": "acme conversation-1 1?", "citations": [{"module": module} for module in modules]}
    broken = with_turns(evidence, lambda turns: [wrong, *turns[1:]])

    got = ", ".join(modules) or "nothing"
    assert failed(broken) == {
        "Answers are right": (f"acme/conversation-1: 'acme conversation-1 1?' cites {got} instead of csv",)
    }


def test_the_faults_stand_under_the_table_and_only_the_first_of_many(evidence: Evidence) -> None:
    broken = replace(evidence, runs=[replace(run, status="error") for run in evidence.runs])
    out = StringIO()

    Console(file=out, width=200).print(verdict_view(judge(broken), 12.3))

    shown = out.getvalue()
    assert "✗ Every run succeeded:" in shown
    assert shown.count(" is error") == 5
    assert "… and 7 more" in shown
    assert "Something promised was not so (12 s)." in shown


@pytest.mark.parametrize(("faults", "status"), [((), 0), (("one thing",), 1)])
def test_the_exit_status_of_the_demo_is_its_verdict(
    faults: tuple[str, ...],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [Check("This holds", "1 of 1", ()), Check("So should this", "0 of 1", faults)]
    monkeypatch.setattr(demo, "_play", lambda home, out: checks)

    assert demo.run_demo(tmp_path, json=True) == status

    document = json.loads(capsys.readouterr().out)
    assert document["holds"] is (status == 0)
    assert document["folder"] == str(tmp_path / "demo")
    assert document["checks"][1] == {
        "name": "So should this",
        "holds": not faults,
        "found": "0 of 1",
        "faults": list(faults),
    }
