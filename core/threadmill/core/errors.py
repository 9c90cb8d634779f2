"""Every error that Threadmill raises by name.

    ThreadmillError
    ├── InvalidRequest                what the caller handed over cannot be accepted; nothing was written
    │   ├── InvalidInput              a value is no JSON, too large, or does not fit the schema
    │   ├── InvalidTenant             the tenant's name is outside the alphabet
    │   ├── InvalidThreadId           the thread id is empty, too long, or holds control characters
    │   ├── InvalidOption             another argument has an impossible value
    │   ├── ReservedKey               `config.configurable` holds a key that Threadmill or LangGraph owns
    │   ├── ImportInvalid             a file of dead letters is cut off, was changed, or is none
    │   ├── FleetOnly                 a desk that is bound to a tenant was asked for what concerns all
    │   ├── ShardsApart               one call has tenants whose ledgers are different databases
    │   └── UnknownGraph              no worker has ever announced a graph of that name
    ├── Conflict                      the request is well formed, but the ledger's state forbids it
    │   ├── IdempotencyConflict       the idempotency key was used for a different run
    │   ├── ThreadBusy                `multitask_strategy="reject"`, and the thread has unfinished runs
    │   ├── NotReplayable             the dead letter is resolved, discarded or being replayed
    │   ├── JobNotRunning             the replay job is stopped or done
    │   ├── NotStreamed               the run was enqueued without `stream_mode`, so it tells nothing
    │   ├── NotCancellable            the run is already finished
    │   └── QuotaExceeded             a bound on pending runs is reached
    │       └── TenantQuotaExceeded   the tenant's own
    ├── NotFound
    │   ├── RunNotFound               this tenant has no such run
    │   ├── ThreadNotFound            this tenant has no such thread
    │   ├── DeadLetterNotFound        there is no such dead letter
    │   ├── JobNotFound               there is no such replay job
    │   └── NothingMatches            no dead letter that can be replayed fits the filter
    ├── WaitTimeout                   the run was not finished in the time the caller gave
    ├── ForeignThread                 an attempt tried to write into a thread that is not its run's
    ├── LeaseLost                     an attempt tried to write after its run was given to another
    ├── RunTimeout                    an attempt took longer than `timeout`, or a run than `deadline`
    ├── WorkerLost                    a run's worker process ended without a word, again and again
    ├── GraphError                    a graph cannot be served
    │   ├── GraphConfigInvalid        langgraph.json itself is wrong
    │   └── GraphLoadFailed           a graph that it names cannot be loaded
    ├── SettingsInvalid               a setting has an impossible value
    ├── ExtraMissing                  what is asked for needs an optional part that is not installed
    ├── MigrationFailed               the database refused to change its tables, or knows no such revision
    ├── FolderInUse                   another process runs the embedded services of the folder
    ├── ProcessEnded                  a process that a command started and needs ended by itself
    └── Unavailable                   something that Threadmill stands on does not answer
        ├── ServicesNotFound          no URL is set and no `threadmill dev` runs in this folder
        ├── DatabaseUnavailable       Postgres does not answer
        ├── DatabaseNotMigrated       Postgres answers, and its tables are missing or of another version
        ├── PoolerInTheWay            a pooler before Postgres keeps from connections what they need
        ├── BrokerUnavailable         the broker does not answer
        ├── DependencyUnavailable     the breaker of a dependency that a node calls is open
        └── EmbeddedServiceFailed     an embedded Postgres or Redis did not start

Each takes its fields as arguments, keeps them as attributes, and survives pickling.
"""

from __future__ import annotations

from collections.abc import Sequence


class ThreadmillError(Exception):
    """Something that Threadmill names went wrong."""


class InvalidRequest(ThreadmillError):
    """What the caller handed over cannot be accepted; nothing was written."""


class InvalidInput(InvalidRequest):
    """A JSON value of the request cannot be accepted."""

    def __init__(self, field: str, path: str, reason: str) -> None:
        super().__init__(field, path, reason)
        self.field, self.path, self.reason = field, path, reason

    def __str__(self) -> str:
        return f"{self.field}{self.path}: {self.reason}"


class InvalidTenant(InvalidRequest):
    """The tenant's name is outside the alphabet."""

    def __init__(self, tenant: object) -> None:
        super().__init__(tenant)
        self.tenant = tenant

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} must match [A-Za-z0-9._-]{{1,64}}"


class InvalidThreadId(InvalidRequest):
    """The thread id cannot name a thread."""

    def __init__(self, thread_id: object, reason: str) -> None:
        super().__init__(thread_id, reason)
        self.thread_id, self.reason = thread_id, reason

    def __str__(self) -> str:
        return f"thread_id {self.thread_id!r} {self.reason}"


class InvalidOption(InvalidRequest):
    """An argument has an impossible value."""

    def __init__(self, option: str, value: object, reason: str) -> None:
        super().__init__(option, value, reason)
        self.option, self.value, self.reason = option, value, reason

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.reason}"


class ReservedKey(InvalidRequest):
    """`config.configurable` or `config.metadata` holds a key that is not the caller's to set."""

    def __init__(self, key: str, part: str = "configurable") -> None:
        super().__init__(key, part)
        self.key, self.part = key, part

    def __str__(self) -> str:
        return (
            f"config.{self.part}[{self.key!r}] is set by Threadmill or LangGraph; "
            "remove it (tenant and thread_id are arguments of enqueue)"
        )


class ImportInvalid(InvalidRequest):
    """A file of dead letters cannot be imported; nothing was written. line: where, from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line, self.reason = line, reason

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class FleetOnly(InvalidRequest):
    """What concerns every tenant was asked of a desk that is bound to one."""

    def __init__(self, action: str, tenant: str) -> None:
        super().__init__(action, tenant)
        self.action, self.tenant = action, tenant

    def __str__(self) -> str:
        return f"{self.action} concerns every tenant, and this desk is bound to {self.tenant}"


class ShardsApart(InvalidRequest):
    """One call, which is one transaction, has tenants whose ledgers are different databases."""

    def __init__(self, tenant: str, other: str) -> None:
        super().__init__(tenant, other)
        self.tenant, self.other = tenant, other

    def __str__(self) -> str:
        return f"{self.tenant} and {self.other} are of different shards: enqueue for each shard by itself"


class UnknownGraph(InvalidRequest):
    """No worker has announced a graph of that name."""

    def __init__(self, graph: str, known: Sequence[str]) -> None:
        super().__init__(graph, tuple(known))
        self.graph, self.known = graph, tuple(known)

    def __str__(self) -> str:
        if not self.known:
            return (
                f"no graph {self.graph!r}: no worker has announced any graph to this database yet; "
                "start one with `threadmill worker`"
            )
        return f"no graph {self.graph!r}; known graphs: {', '.join(self.known)}"


class Conflict(ThreadmillError):
    """The request is well formed, but the ledger's state forbids it."""


class IdempotencyConflict(Conflict):
    """The idempotency key was used for a different run."""

    def __init__(self, idempotency_key: str, run_id: str) -> None:
        super().__init__(idempotency_key, run_id)
        self.idempotency_key, self.run_id = idempotency_key, run_id

    def __str__(self) -> str:
        return (
            f"idempotency_key {self.idempotency_key!r} belongs to run {self.run_id}, which has another "
            "payload; use a new key for a new run"
        )


class ThreadBusy(Conflict):
    """The thread has unfinished runs and the multitask strategy is reject."""

    def __init__(self, tenant: str, thread_id: str) -> None:
        super().__init__(tenant, thread_id)
        self.tenant, self.thread_id = tenant, thread_id

    def __str__(self) -> str:
        return (
            f"thread {self.thread_id!r} of tenant {self.tenant!r} has unfinished runs; wait for them, "
            'or enqueue with multitask_strategy="enqueue"'
        )


class NotReplayable(Conflict):
    """The dead letter is not in a state from which this is possible. reason: what is possible, or why not."""

    def __init__(self, dead_letter_id: str, status: str, reason: str | None = None) -> None:
        super().__init__(dead_letter_id, status, reason)
        self.dead_letter_id, self.status, self.reason = dead_letter_id, status, reason

    def __str__(self) -> str:
        reason = self.reason or "only waiting and parked ones can be replayed or discarded"
        return f"dead letter {self.dead_letter_id} is {self.status}; {reason}"


class JobNotRunning(Conflict):
    """The replay job is not in a state from which this is possible."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(job_id, status)
        self.job_id, self.status = job_id, status

    def __str__(self) -> str:
        return f"replay job {self.job_id} is {self.status}"


class NotStreamed(Conflict):
    """The run tells nothing while it runs."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return (
            f"run {self.run_id} has no stream; enqueue it with stream_mode, on a fleet whose broker is Redis"
        )


class NotCancellable(Conflict):
    """The run is in a state from which it cannot be cancelled."""

    def __init__(self, run_id: str, status: str) -> None:
        super().__init__(run_id, status)
        self.run_id, self.status = run_id, status

    def __str__(self) -> str:
        return f"run {self.run_id} is {self.status} and cannot be cancelled"


class QuotaExceeded(Conflict):
    """The fleet holds as many pending runs as it may; nothing was written."""

    def __init__(self, pending: int, limit: int, retry_after: float) -> None:
        """retry_after: seconds in which, at the present pace, there is room again."""
        super().__init__(pending, limit, retry_after)
        self.pending, self.limit, self.retry_after = pending, limit, retry_after

    def __str__(self) -> str:
        return (
            f"{self.pending} runs are pending and {self.limit} are allowed; "
            f"try again in {self.retry_after:g} s"
        )


class TenantQuotaExceeded(QuotaExceeded):
    """The tenant has as many pending runs as it may; nothing was written."""

    def __init__(self, tenant: str, pending: int, limit: int, retry_after: float) -> None:
        """retry_after: seconds in which, at the present pace, there is room again."""
        Exception.__init__(self, tenant, pending, limit, retry_after)
        self.tenant, self.pending, self.limit, self.retry_after = tenant, pending, limit, retry_after

    def __str__(self) -> str:
        return (
            f"tenant {self.tenant} has {self.pending} pending runs and may have {self.limit}; "
            f"try again in {self.retry_after:g} s"
        )


class NotFound(ThreadmillError):
    """What was asked for is not there, or is another tenant's."""


class RunNotFound(NotFound):
    """This tenant has no such run."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"no run {self.run_id}"


class ThreadNotFound(NotFound):
    """This tenant has no such thread."""

    def __init__(self, tenant: str, thread_id: str) -> None:
        super().__init__(tenant, thread_id)
        self.tenant, self.thread_id = tenant, thread_id

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} has no thread {self.thread_id!r}"


class DeadLetterNotFound(NotFound):
    """There is no such dead letter."""

    def __init__(self, dead_letter_id: str) -> None:
        super().__init__(dead_letter_id)
        self.dead_letter_id = dead_letter_id

    def __str__(self) -> str:
        return f"no dead letter {self.dead_letter_id}"


class JobNotFound(NotFound):
    """There is no such replay job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"no replay job {self.job_id}"


class NothingMatches(NotFound):
    """No dead letter that is waiting or parked fits the filter."""

    def __init__(self, conditions: str) -> None:
        super().__init__(conditions)
        self.conditions = conditions

    def __str__(self) -> str:
        return f"no dead letter that is waiting or parked fits {self.conditions or 'an empty filter'}"


class WaitTimeout(ThreadmillError):
    """The run was not finished in the time the caller gave; it goes on."""

    def __init__(self, run_id: str, status: str, seconds: float) -> None:
        super().__init__(run_id, status, seconds)
        self.run_id, self.status, self.seconds = run_id, status, seconds

    def __str__(self) -> str:
        return f"run {self.run_id} is still {self.status} after {self.seconds:g} s; it goes on, wait again"


class ForeignThread(ThreadmillError):
    """An attempt tried to write into a thread that is not its run's."""

    def __init__(self, thread_id: str, own_thread_id: str) -> None:
        super().__init__(thread_id, own_thread_id)
        self.thread_id, self.own_thread_id = thread_id, own_thread_id

    def __str__(self) -> str:
        return (
            f"a run on thread {self.own_thread_id!r} may not write into thread {self.thread_id!r}; "
            "enqueue a run there"
        )


class LeaseLost(ThreadmillError):
    """An attempt tried to write after its run was given to another, finished or cancelled."""

    def __init__(self, run_id: str, attempt: int) -> None:
        super().__init__(run_id, attempt)
        self.run_id, self.attempt = run_id, attempt

    def __str__(self) -> str:
        return f"attempt {self.attempt} of run {self.run_id} no longer holds its lease; nothing was written"


class RunTimeout(ThreadmillError):
    """An attempt was given up because its time was over. limit: which of the two it was."""

    def __init__(self, limit: str, seconds: float) -> None:
        super().__init__(limit, seconds)
        self.limit, self.seconds = limit, seconds

    def __str__(self) -> str:
        return f"given up after {self.seconds:g} s: the {self.limit} is over"


class WorkerLost(ThreadmillError):
    """A run's worker process ended without a word each time that it executed the run."""

    def __init__(self, losses: int, cause: str) -> None:
        super().__init__(losses, cause)
        self.losses, self.cause = losses, cause

    def __str__(self) -> str:
        return f"its worker was lost {self.losses} times, at last by {self.cause}"


class GraphError(ThreadmillError):
    """A graph cannot be served."""


class GraphConfigInvalid(GraphError):
    """langgraph.json is missing, is no JSON, or holds what it must not."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class GraphLoadFailed(GraphError):
    """A graph that langgraph.json names cannot be loaded."""

    def __init__(self, graph: str, location: str, reason: str) -> None:
        super().__init__(graph, location, reason)
        self.graph, self.location, self.reason = graph, location, reason

    def __str__(self) -> str:
        return f"graph {self.graph!r} ({self.location}): {self.reason}"


class SettingsInvalid(ThreadmillError):
    """A setting has an impossible value."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "settings: " + "; ".join(self.problems)


class ExtraMissing(ThreadmillError):
    """What is asked for needs an optional part of Threadmill that is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(extra, module)
        self.extra, self.module = extra, module

    def __str__(self) -> str:
        return f'this needs `pip install "threadmill[{self.extra}]"` ({self.module} is not installed)'


class MigrationFailed(ThreadmillError):
    """The tables could not be looked at or brought to another revision; they are as they were."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"cannot migrate the database at {self.address}: {self.reason}"


class FolderInUse(ThreadmillError):
    """Another process runs the embedded services of the folder."""

    def __init__(self, folder: str, pid: str) -> None:
        super().__init__(folder, pid)
        self.folder, self.pid = folder, pid

    def __str__(self) -> str:
        return (
            f"{self.folder} is in use by process {self.pid or '(unknown)'}; "
            "stop it, or set THREADMILL_FOLDER to run services of your own"
        )


class ProcessEnded(ThreadmillError):
    """A process that a command started and needs ended by itself."""

    def __init__(self, name: str, status: int, log: str) -> None:
        super().__init__(name, status, log)
        self.name, self.status, self.log = name, status, log

    def __str__(self) -> str:
        ending = f"status {self.status}" if self.status >= 0 else f"signal {-self.status}"
        return f"{self.name} ended with {ending}; see {self.log}"


class Unavailable(ThreadmillError):
    """Something that Threadmill stands on does not answer."""


class ServicesNotFound(Unavailable):
    """No URL is set, and no `threadmill dev` runs in this folder."""

    def __init__(self, variable: str, folder: str) -> None:
        super().__init__(variable, folder)
        self.variable, self.folder = variable, folder

    def __str__(self) -> str:
        return (
            f"{self.variable} is not set and no `threadmill dev` is running with {self.folder}; "
            "set it, or start `threadmill dev` in this folder"
        )


class DatabaseUnavailable(Unavailable):
    """Postgres does not answer."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"Postgres at {self.address} does not answer: {self.reason}"


class DatabaseNotMigrated(Unavailable):
    """Postgres answers, and its tables are missing or of another version."""

    def __init__(self, address: str, found: str | None, expected: str) -> None:
        super().__init__(address, found, expected)
        self.address, self.found, self.expected = address, found, expected

    def __str__(self) -> str:
        found = f"is at revision {self.found}" if self.found else "holds no Threadmill tables"
        return (
            f"the database at {self.address} {found}, expected {self.expected}; run `threadmill db upgrade`"
        )


class PoolerInTheWay(Unavailable):
    """A pooler before Postgres keeps from connections what they need. remedy: what to do."""

    def __init__(self, address: str, reason: str, remedy: str) -> None:
        super().__init__(address, reason, remedy)
        self.address, self.reason, self.remedy = address, reason, remedy

    def __str__(self) -> str:
        return f"the pooler at {self.address} is in the way: {self.reason}; {self.remedy}"


class BrokerUnavailable(Unavailable):
    """The broker does not answer."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"the broker at {self.address} does not answer: {self.reason}"


class DependencyUnavailable(Unavailable):
    """A node called a dependency whose breaker is open; it was not called."""

    def __init__(self, dependency: str, retry_after: float) -> None:
        """retry_after: seconds until the breaker lets a few calls through."""
        super().__init__(dependency, retry_after)
        self.dependency, self.retry_after = dependency, retry_after

    def __str__(self) -> str:
        return f"the breaker of {self.dependency!r} is open for another {self.retry_after:g} s"


class EmbeddedServiceFailed(Unavailable):
    """An embedded Postgres or Redis did not start."""

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(service, reason)
        self.service, self.reason = service, reason

    def __str__(self) -> str:
        return f"embedded {self.service} did not start: {self.reason}"
