"""Replay jobs: whatever stops one, kills it or runs it twice, each dead letter is replayed once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from tests.integration.failures import Failures

from threadmill.core.errors import (
    DeadLetterNotFound,
    InvalidOption,
    JobNotFound,
    JobNotRunning,
    NothingMatches,
    NotReplayable,
)
from threadmill.core.settings import Settings
from threadmill.dlq import Desk, LetterFilter, ReplayJob
from threadmill.dlq.jobs import BATCH

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def failures(admin: Any) -> Failures:
    failures = Failures(admin)
    failures.announce()
    return failures


@pytest.fixture
def open_desk(settings: Settings) -> Iterator[Callable[..., Desk]]:
    """Opens desks, with as much room as a test wants."""
    desks: list[Desk] = []

    def open_desk(tenant: str | None = None, replay_window: int = 10_000) -> Desk:
        desk = Desk(settings.model_copy(update={"replay_window": replay_window}), tenant)
        desks.append(desk)
        return desk

    yield open_desk
    for desk in desks:
        desk.close()


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


def fail_many(failures: Failures, number: int, **letter: Any) -> list[str]:
    return [failures.fail(f"t{n}", **letter) for n in range(number)]


def replayed(admin: Any) -> Counter[str]:
    """How often each dead letter was replayed, as its record has it."""
    rows = admin.execute("select letter_id from dead_letter_actions where action = 'replay'").fetchall()
    return Counter(str(row[0]) for row in rows)


# ---------------------------------------------------------------------------------------------------
# What a job replays


def test_a_job_replays_what_fits_its_filter_and_what_there_was_when_it_began(
    desk: Desk, failures: Failures, admin: Any
) -> None:
    meant = [*fail_many(failures, 3), failures.fail("parked", status="parked")]
    failures.fail("other", graph="poet")
    failures.fail("closed", status="discarded")
    failures.fail("done", status="resolved")
    failures.undeliverable()

    job = desk.start_job(LetterFilter(graph="chat"), by="ada")
    failures.fail("later")
    seen: list[ReplayJob] = []
    done = desk.run_job(job.id, on_progress=seen.append)

    assert (job.status, job.total, job.replayed, job.by) == ("running", 4, 0, "ada")
    assert (done.status, done.total, done.replayed, done.skipped) == ("done", 4, 4, 0)
    assert seen[-1] == done == desk.job(job.id) == desk.jobs()[0]
    assert replayed(admin) == Counter(meant)
    assert failures.actions(meant[0]) == [
        ("replay", "ada", {"mode": "resume", "asked": "auto", "job": job.id})
    ]


def test_a_job_of_ids_replays_these(desk: Desk, failures: Failures, admin: Any) -> None:
    letters = fail_many(failures, 5)

    job = desk.start_job([letters[3], letters[1], letters[3]], mode="append")
    done = desk.run_job(job.id)

    assert (done.total, done.replayed) == (2, 2)
    assert replayed(admin) == Counter([letters[1], letters[3]])
    assert failures.column(letters[1], "replay_mode") == "append"


def test_what_cannot_be_replayed_in_the_mode_is_skipped_and_counted(
    desk: Desk, failures: Failures, admin: Any
) -> None:
    moved, stands = fail_many(failures, 2)
    failures.follow("t0", started=True)

    done = desk.run_job(desk.start_job(LetterFilter(), mode="resume").id)

    assert (done.status, done.replayed, done.skipped) == ("done", 1, 1)
    assert replayed(admin) == Counter([stands])
    assert failures.column(moved, "status") == "waiting"


def test_the_letters_of_one_thread_go_one_after_the_other(desk: Desk, failures: Failures, admin: Any) -> None:
    letters = [*(failures.fail("t") for _ in range(3)), *fail_many(failures, 2)]
    at_once: list[int] = []

    def work(_: ReplayJob) -> None:
        rows = admin.execute("select id from dead_letters where status = 'replaying' and thread_id = 't'")
        at_once.append(len(rows.fetchall()))
        failures.succeed()

    done = desk.run_job(desk.start_job(LetterFilter()).id, on_progress=work)

    assert done.replayed == 5
    assert max(at_once) == 1
    assert replayed(admin) == Counter(letters)


# ---------------------------------------------------------------------------------------------------
# Stop and continue


def test_a_job_that_is_stopped_elsewhere_goes_on_where_it_stood(
    open_desk: Callable[..., Desk], failures: Failures, admin: Any
) -> None:
    letters = fail_many(failures, 2 * BATCH + 20)
    desk, elsewhere = open_desk(), open_desk()
    job = desk.start_job(LetterFilter())

    def stop(now: ReplayJob) -> None:
        if now.status == "running":
            elsewhere.stop_job(now.id)

    stopped = desk.run_job(job.id, on_progress=stop)

    assert (stopped.status, stopped.replayed) == ("stopped", BATCH)
    assert replayed(admin) == Counter(letters[:BATCH])
    with pytest.raises(JobNotRunning, match="is stopped"):
        desk.run_job(job.id)
    with pytest.raises(JobNotRunning, match="is stopped"):
        desk.stop_job(job.id)

    assert elsewhere.continue_job(job.id).status == "running"
    done = elsewhere.run_job(job.id)

    assert (done.status, done.replayed, done.skipped) == ("done", len(letters), 0)
    assert replayed(admin) == Counter(letters), "none is missed, none is doubled"
    for over in (desk.run_job, desk.stop_job, desk.continue_job):
        with pytest.raises(JobNotRunning, match="is done"):
            over(job.id)


def test_a_stop_in_the_middle_of_a_batch_comes_after_it(
    open_desk: Callable[..., Desk], failures: Failures, admin: Any, settings: Settings
) -> None:
    letters = fail_many(failures, BATCH + 5)
    desk, elsewhere = open_desk(), open_desk()
    job = desk.start_job(LetterFilter())
    with psycopg.connect(settings.database_url) as blocker, ThreadPoolExecutor(2) as pool:
        blocker.execute("select from threadmill.threads where thread_id = 't7' for update")
        running = pool.submit(desk.run_job, job.id)
        wait_until_blocked(admin, 1)
        stopping = pool.submit(elsewhere.stop_job, job.id)
        wait_until_blocked(admin, 2)
        blocker.rollback()
        stopped = running.result(20)
        stopping.result(20)

    assert (stopped.status, stopped.replayed) == ("stopped", BATCH)
    assert replayed(admin) == Counter(letters[:BATCH])


def wait_until_blocked(admin: Any, number: int) -> None:
    """Until so many sessions wait for a lock."""
    ends_at = time.monotonic() + 20
    while time.monotonic() < ends_at:
        (waiting,) = admin.execute(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        ).fetchone()
        if waiting >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{number} sessions never waited for a lock")


RUNNER = """
import sys
from threadmill.core.settings import Settings
from threadmill.dlq import Desk
with Desk(Settings()) as desk:
    desk.run_job(sys.argv[1], on_progress=lambda job: print(job.replayed, flush=True))
"""


def test_a_runner_that_is_killed_within_a_batch_leaves_a_job_to_be_continued(
    desk: Desk, failures: Failures, admin: Any, settings: Settings
) -> None:
    letters = fail_many(failures, 2 * BATCH + 20)
    job = desk.start_job(LetterFilter())
    in_second_batch = f"t{BATCH + BATCH // 2}"
    environment = {
        **os.environ,
        "THREADMILL_DATABASE_URL": settings.database_url,
        "THREADMILL_BROKER_URL": settings.broker_url,
        "THREADMILL_QUEUE": settings.queue,
        "THREADMILL_REPLAY_WINDOW": "10000",
    }
    with psycopg.connect(settings.database_url) as blocker:
        blocker.execute("select from threadmill.threads where thread_id = %s for update", [in_second_batch])
        runner = subprocess.Popen(
            [sys.executable, "-c", RUNNER, job.id], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert runner.stdout is not None
        assert runner.stdout.readline() == f"{BATCH}\n"
        wait_until_blocked(admin, 1)
        runner.kill()
        runner.wait(10)
        runner.stdout.close()

    left = desk.continue_job(job.id)
    assert (left.status, left.replayed) == ("running", BATCH)
    assert replayed(admin) == Counter(letters[:BATCH]), "of the batch that was killed, nothing is left"

    done = desk.run_job(job.id)

    assert (done.status, done.replayed, done.skipped) == ("done", len(letters), 0)
    assert replayed(admin) == Counter(letters)


def test_of_two_runners_at_once_each_letter_is_replayed_by_one(
    open_desk: Callable[..., Desk], failures: Failures, admin: Any
) -> None:
    letters = fail_many(failures, 2 * BATCH + 50)
    desks = [open_desk(replay_window=40) for _ in range(3)]
    job = desks[0].start_job(LetterFilter())
    over = threading.Event()
    most = [0]

    def work() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], failures.succeed())

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(lambda desk: desk.run_job(job.id), desks))
    finally:
        over.set()
        worker.join()

    assert {now.status for now in done} == {"done"}
    assert desks[0].job(job.id).replayed == len(letters)
    assert replayed(admin) == Counter(letters)
    assert 0 < most[0] <= 40, "no more are under way than the window has room for"


def test_an_operator_who_replays_some_meanwhile_doubles_none(
    open_desk: Callable[..., Desk], failures: Failures, admin: Any
) -> None:
    letters = fail_many(failures, BATCH + 30)
    desk, operator = open_desk(), open_desk()
    job = desk.start_job(LetterFilter())

    def replay_some() -> int:
        done = 0
        for letter_id in letters[-40:]:
            try:
                operator.replay(letter_id, by="ada")
            except NotReplayable:
                continue
            done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        running, by_hand = pool.submit(desk.run_job, job.id), pool.submit(replay_some)
        done, number = running.result(60), by_hand.result(60)

    assert replayed(admin) == Counter(letters)
    assert done.replayed + number == len(letters)


# ---------------------------------------------------------------------------------------------------
# Bounds


def test_a_jobs_rate_is_kept(desk: Desk, failures: Failures, admin: Any) -> None:
    fail_many(failures, 9)

    desk.run_job(desk.start_job(LetterFilter(), rate=20).id)

    rows = admin.execute(
        "select count(*), extract(epoch from replayed_at - min(replayed_at) over ())::float"
        " from dead_letters group by replayed_at order by replayed_at"
    ).fetchall()
    assert [count for count, _ in rows] == [2, 2, 2, 2, 1]
    assert all(at >= 0.1 * number - 0.02 for number, (_, at) in enumerate(rows))


def test_the_ledgers_limits_bind_a_job_too(desk: Desk, failures: Failures, admin: Any) -> None:
    fail_many(failures, 3, tenant="acme")
    desk.set_rate("tenant", "acme", 10)
    admin.execute("update replay_rates set spent_until = now() + '1 hour'")
    at_first: list[int] = []

    def let_through(now: ReplayJob) -> None:
        if not at_first:
            at_first.append(now.replayed)
            admin.execute("update replay_rates set spent_until = null")

    done = desk.run_job(desk.start_job(LetterFilter()).id, on_progress=let_through)

    assert (at_first, done.replayed) == ([0], 3)
    assert admin.execute("select spent_until > now() from replay_rates").fetchone() == (True,)


# ---------------------------------------------------------------------------------------------------
# A desk that is bound to a tenant, and bad input


def test_a_tenants_job_is_of_its_own_letters_and_seen_by_it_alone(
    open_desk: Callable[..., Desk], failures: Failures, admin: Any
) -> None:
    own = failures.fail("t", tenant="acme")
    failures.fail("t", tenant="globex")
    acme, globex, desk = open_desk("acme"), open_desk("globex"), open_desk()

    job = acme.start_job(LetterFilter())
    everyones = desk.start_job(LetterFilter())

    assert [found.id for found in acme.jobs()] == [job.id]
    assert globex.jobs() == []
    assert [found.id for found in desk.jobs()] == [everyones.id, job.id]
    for hidden in (everyones.id, NOBODY):
        for look in (acme.job, acme.run_job, acme.stop_job, acme.continue_job):
            with pytest.raises(JobNotFound, match=hidden):
                look(hidden)
    with pytest.raises(NothingMatches):
        acme.start_job(LetterFilter(tenant="globex"))
    acme.run_job(job.id)
    assert replayed(admin) == Counter([own])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"which": LetterFilter(graph="nobody")}, NothingMatches),
        ({"which": LetterFilter(status="resolved")}, NothingMatches),
        ({"which": []}, InvalidOption),
        ({"which": [NOBODY]}, DeadLetterNotFound),
        ({"which": ["odd"]}, DeadLetterNotFound),
        ({"which": LetterFilter(), "mode": "rewind"}, InvalidOption),
        ({"which": LetterFilter(), "rate": 0}, InvalidOption),
        ({"which": LetterFilter(), "rate": -5}, InvalidOption),
    ],
)
def test_a_job_that_cannot_be_has_its_named_error_and_is_not_begun(
    desk: Desk, failures: Failures, arguments: dict[str, Any], error: type[Exception]
) -> None:
    failures.fail("closed", status="resolved")
    if "mode" in arguments or "rate" in arguments:
        failures.fail("open")
    before = failures.everything()

    with pytest.raises(error):
        desk.start_job(**arguments)

    assert failures.everything() == before


@pytest.mark.parametrize("status", ["resolved", "discarded", "replaying"])
def test_a_job_of_ids_of_which_one_cannot_be_replayed_is_not_begun(
    desk: Desk, failures: Failures, status: str
) -> None:
    letters = [failures.fail("a"), failures.fail("b", status=status)]
    before = failures.everything()

    with pytest.raises(NotReplayable, match=f"is {status}"):
        desk.start_job(letters)

    assert failures.everything() == before


@pytest.mark.parametrize("name", ["no-uuid", NOBODY])
def test_a_job_that_is_not_there_is_not_found(desk: Desk, name: str) -> None:
    for look in (desk.job, desk.run_job, desk.stop_job, desk.continue_job):
        with pytest.raises(JobNotFound, match=name):
            look(name)
