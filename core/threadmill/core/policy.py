"""What a graph's owner decides about its runs: the entries of the `threadmill` key in langgraph.json."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Durability = Literal["sync", "async", "exit"]
History = Literal["full", "durable"]
OnDeadLetter = Literal["skip", "hold"]

DAY = 86_400


class GraphPolicy(BaseModel):
    """One graph's policy. Unknown keys and impossible values raise pydantic's ValidationError.

    Times are in seconds.

    durability: when LangGraph saves a checkpoint (its own three words).
    history: which checkpoints are kept (full: all), of those that are saved in one transaction only the last
        (durable). An attempt goes on from the same place with either; what is missing are steps to look at,
        or to go back to.
    max_attempts: how many attempts may fail before the run is a dead letter.
    retry_delay, retry_delay_max: before an attempt that failed is followed by another: exponential with
        full jitter, from the one to the other.
    rate_limit_budget: how long a run may wait in all for those that answer "too many requests", before
        such an answer costs an attempt.
    classifier: "./file.py:name" or "package.module:name" of a function that says what an exception means
        (see threadmill.graphs.classifier); None takes Threadmill's own.
    redact: such a name of a function of a text that gives it without the secrets which Threadmill does not
        know; it is applied to all text that is kept of a failure. None leaves it at those that it knows.
    fingerprint: such a name of a function of an exception and a node (None outside any) that names the group
        of dead letters; where it gives None, and without one, Threadmill's own fingerprint holds.
    timeout: how long one attempt may take; None sets no limit.
    deadline: how long a run may take in all, from when it is due; None sets no limit.
    breaker_threshold: how many attempts of this graph, or calls of a dependency, fail in a row for a
        transient reason until its runs are no longer started; None never holds them back.
    breaker_cooldown: how long an open breaker lets nothing through, and then a few.
    breaker_budget: how long a run that is due may wait behind an open breaker, before it is a dead letter
        that is replayed once the breaker has closed; None lets it wait.
    on_dead_letter: whether later runs of the thread go on (skip) or wait (hold).
    hold_timeout: how long they wait at the most; None until the dead letter is closed.
    checkpoint_ttl: how long after its end a run's checkpoints are kept, a thread's latest apart, which are
        always; 0 keeps only these, None keeps all.
    keep_checkpoints: how many checkpoints of a thread are kept when a run on it succeeds, the newest; None
        keeps all. With checkpoint_ttl too, each of them removes what it would by itself.
    output: which keys of the graph's output are kept in the ledger: "all", "none", or a list of keys.
    recursion_limit: LangGraph's limit of supersteps for one run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    durability: Durability = "async"
    history: History = "full"
    max_attempts: int = Field(default=3, ge=1, le=100)
    retry_delay: float = Field(default=1, ge=0, le=DAY)
    retry_delay_max: float = Field(default=60, ge=0, le=DAY)
    rate_limit_budget: float = Field(default=600, ge=0, le=30 * DAY)
    classifier: str | None = None
    redact: str | None = None
    fingerprint: str | None = None
    timeout: float | None = Field(default=None, gt=0, le=30 * DAY)
    deadline: float | None = Field(default=None, gt=0, le=365 * DAY)
    breaker_threshold: int | None = Field(default=10, ge=1)
    breaker_cooldown: float = Field(default=30, gt=0, le=DAY)
    breaker_budget: float | None = Field(default=None, gt=0, le=365 * DAY)
    on_dead_letter: OnDeadLetter = "skip"
    hold_timeout: float | None = Field(default=None, gt=0, le=365 * DAY)
    checkpoint_ttl: float | None = Field(default=None, ge=0)
    keep_checkpoints: int | None = Field(default=None, ge=1)
    output: Literal["all", "none"] | tuple[str, ...] = "all"
    recursion_limit: int = Field(default=25, ge=1)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> GraphPolicy:
        if self.timeout is not None and self.deadline is not None and self.timeout > self.deadline:
            raise ValueError(f"timeout {self.timeout:g} s is longer than deadline {self.deadline:g} s")
        if self.retry_delay > self.retry_delay_max:
            raise ValueError(
                f"retry_delay {self.retry_delay:g} s is longer than "
                f"retry_delay_max {self.retry_delay_max:g} s"
            )
        return self
