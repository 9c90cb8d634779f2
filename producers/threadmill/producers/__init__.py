"""Everything that puts runs in. Importing it loads neither langgraph nor celery's workers."""

from threadmill.producers.cancellation import CancelAction
from threadmill.producers.events import Event
from threadmill.producers.producer import AsyncProducer, Producer
from threadmill.producers.run import Run, RunError
from threadmill.producers.state import ThreadState

__all__ = ["AsyncProducer", "CancelAction", "Event", "Producer", "Run", "RunError", "ThreadState"]
