"""Everything that runs runs: Celery tasks, executor, checkpointer and store, heartbeats, sweeps."""

# First of all: it makes LangGraph's serialiser strict, which LangGraph decides when it is first imported.
import threadmill.graphs  # noqa: F401
