"""Everything that runs runs: Celery tasks, executor, checkpointer and store, heartbeats, sweeps."""
