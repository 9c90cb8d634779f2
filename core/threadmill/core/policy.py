"""What a graph's owner decides about its runs: the entries of the `threadmill` key in langgraph.json."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Durability = Literal["sync", "async", "exit"]
OnDeadLetter = Literal["skip", "hold"]


class GraphPolicy(BaseModel):
    """One graph's policy. Unknown keys and impossible values raise pydantic's ValidationError.

    durability: when LangGraph saves a checkpoint (its own three words).
    max_attempts: how often a run may be tried before it is a dead letter.
    timeout: seconds one attempt may take; None sets no limit.
    on_dead_letter: whether later runs of the thread go on (skip) or wait (hold).
    output: which keys of the graph's output are kept in the ledger: "all", "none", or a list of keys.
    recursion_limit: LangGraph's limit of supersteps for one run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    durability: Durability = "async"
    max_attempts: int = Field(default=3, ge=1, le=100)
    timeout: float | None = Field(default=None, gt=0)
    on_dead_letter: OnDeadLetter = "skip"
    output: Literal["all", "none"] | tuple[str, ...] = "all"
    recursion_limit: int = Field(default=25, ge=1)
