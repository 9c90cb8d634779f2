"""What is recorded of an attempt that failed."""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 4_000
MAX_TRACEBACK = 32_000


@dataclass(frozen=True, slots=True)
class Failure:
    """Why and where an attempt failed. node: None where no node was running."""

    exception_type: str
    message: str
    traceback: str
    node: str | None
    fingerprint: str

    def error(self) -> dict[str, Any]:
        """The run's error as the ledger keeps it."""
        return {"type": self.exception_type, "message": self.message, "node": self.node}

    def record(self, checkpoint_id: str | None) -> dict[str, Any]:
        """The fields of the attempt's record, which ended at this checkpoint."""
        return {
            "node": self.node,
            "checkpoint_id": checkpoint_id,
            "exception_type": self.exception_type,
            "message": self.message,
            "traceback": self.traceback,
        }


def describe(error: BaseException, graph: str, node: str | None) -> Failure:
    """The failure of a graph at a node. What is too long is cut, NUL is replaced."""
    name = type(error).__name__
    text = "".join(traceback.format_exception(error))
    if len(text) > MAX_TRACEBACK:
        text = f"{text[: MAX_TRACEBACK // 2]}\n… cut …\n{text[-MAX_TRACEBACK // 2 :]}"
    identity = "\0".join([graph, node or "", f"{type(error).__module__}.{name}"])
    return Failure(
        exception_type=name,
        message=_storable(str(error))[:MAX_MESSAGE],
        traceback=_storable(text),
        node=node,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
    )


def describe_bare(error: BaseException, graph: str) -> Failure:
    """The failure by its type alone, for one whose text cannot be kept."""
    name = type(error).__name__
    identity = "\0".join([graph, "", f"{type(error).__module__}.{name}"])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Failure(exception_type=name, message="", traceback="", node=None, fingerprint=fingerprint)


def _storable(text: str) -> str:
    """The text without what Postgres cannot keep: NUL and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
