"""Names of tenants and threads, and the one string under which a thread's checkpoints are stored."""

from __future__ import annotations

import re
import unicodedata

from threadmill.core.errors import InvalidTenant, InvalidThreadId

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_THREAD_ID_LENGTH = 255


def check_tenant(tenant: object) -> str:
    """The tenant, if it is one. Raises InvalidTenant."""
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise InvalidTenant(tenant)
    return tenant


def check_thread_id(thread_id: object) -> str:
    """The thread id, if it is one. Raises InvalidThreadId.

    Any text of 1 to 255 characters without control characters (Unicode category Cc) and lone
    surrogates (Cs). It is compared code point by code point: no normalisation, no case folding.
    """
    if not isinstance(thread_id, str):
        raise InvalidThreadId(thread_id, "must be a string")
    if not thread_id:
        raise InvalidThreadId(thread_id, "must not be empty")
    if len(thread_id) > MAX_THREAD_ID_LENGTH:
        raise InvalidThreadId(thread_id, f"is longer than {MAX_THREAD_ID_LENGTH} characters")
    if not thread_id.isprintable():  # fast path: printable text holds neither Cc nor Cs
        for character in thread_id:
            if unicodedata.category(character) in ("Cc", "Cs"):
                raise InvalidThreadId(thread_id, f"holds the character U+{ord(character):04X}")
    return thread_id


def thread_key(tenant: str, thread_id: str) -> str:
    """The string that LangGraph knows as `thread_id`: injective over (tenant, thread id).

    The tenant's alphabet has no colon, so the first colon ends it, and row-level security reads the
    tenant off the key with `split_part(thread_id, ':', 1)`.
    """
    return f"{check_tenant(tenant)}:{check_thread_id(thread_id)}"


def split_thread_key(key: str) -> tuple[str, str]:
    """(tenant, thread id) of a thread key. Raises InvalidTenant or InvalidThreadId for what is none."""
    tenant, _, thread_id = key.partition(":")
    return check_tenant(tenant), check_thread_id(thread_id)


def store_label(tenant: str) -> str:
    """The first label of every namespace of this tenant in LangGraph's store.

    LangGraph joins a namespace's labels with dots, so a dot in the tenant becomes a slash, which no
    tenant holds; the colon ends the tenant, as it does in a thread key.
    """
    return check_tenant(tenant).replace(".", "/") + ":"
