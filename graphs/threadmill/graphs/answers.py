"""What the exceptions of client libraries mean: HTTP, gRPC, AWS, SQL, and classes known by their names.

No library is imported for it. An exception is known by the attributes that it carries, or by the name of one
of its classes together with the first part of the module that holds it, so that `httpx.ReadTimeout` is found
wherever the library keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from threadmill.graphs.attributes import item, read
from threadmill.graphs.retry_after import seconds_said
from threadmill.graphs.verdict import Kind, Verdict

# Codes of answers that come again however often one asks, whatever status they were sent with: OpenAI sends
# insufficient_quota with 429, and a proxy in between can turn a 400 into a 500.
_REFUSED_CODES = {
    "account_deactivated",
    "billing_hard_limit_reached",
    "billing_not_active",
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "exceed_context_size_error",
    "insufficient_quota",
    "responsibleaipolicyviolation",
    "string_above_max_length",
}
_REFUSED_CLASSES = {
    "BlockedPromptException",
    "ContentFilterFinishReasonError",
    "ContentPolicyViolationError",
    "ContextOverflowError",
    "ContextWindowExceededError",
    "LengthFinishReasonError",
    "StopCandidateException",
}
# For answers with a status that asks to come again, and no code that says better.
_REFUSED_PHRASES = (
    "content management policy",
    "content_filter",
    "context_length_exceeded",
    "exceeds the context window",
    "input is too long",
    "maximum context length",
    "prompt is too long",
    "request too large for",
)

# AWS sends these with 400. The throttles are those of botocore (retries/standard.py), without
# LimitExceededException, which also says that an account owns too much of something.
_AWS_CODES: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "bandwidthlimitexceeded",
            "ec2throttledexception",
            "priorrequestnotcomplete",
            "provisionedthroughputexceededexception",
            "requestlimitexceeded",
            "requestthrottled",
            "requestthrottledexception",
            "slowdown",
            "throttledexception",
            "throttling",
            "throttlingexception",
            "toomanyrequestsexception",
            "transactioninprogressexception",
        ),
        "rate_limited",
    ),
    **dict.fromkeys(
        (
            "internalserverexception",
            "modelstreamerrorexception",
            "modeltimeoutexception",
            "requesttimeout",
            "requesttimeoutexception",
            "serviceunavailableexception",
        ),
        "transient",
    ),
}

# An answer that breaks off with an event of this type began with 200, so that no status says what it means.
_STREAM_CODES: dict[str, Kind] = {
    "api_error": "transient",
    "internal_server_error": "transient",
    "overloaded_error": "transient",
    "server_error": "transient",
    "timeout_error": "transient",
    "rate_limit_error": "rate_limited",
    "rate_limit_exceeded": "rate_limited",
}

_GRPC: dict[str, Kind] = {
    "ABORTED": "transient",
    "DEADLINE_EXCEEDED": "transient",
    "INTERNAL": "transient",
    "UNAVAILABLE": "transient",
    "UNKNOWN": "transient",
    "RESOURCE_EXHAUSTED": "rate_limited",
}

# Appendix A of PostgreSQL's manual. Class 08 (connection) is transient as a whole.
_SQLSTATES = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
    "55P03",  # lock_not_available: lock_timeout
    "57014",  # query_canceled: statement_timeout
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "57P05",  # idle_session_timeout
}

_LOCK = re.compile(r"(?<![a-z])lock|deadlock")  # and not "blocked"

# By class and first part of the module, looked up from the exception's own class upwards.
_CLASSES: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "aiohttp.ClientConnectionError",
            "aiohttp.ClientPayloadError",
            "asyncio.IncompleteReadError",
            "azure.ServiceRequestError",
            "azure.ServiceResponseError",
            "botocore.ConnectionError",
            "botocore.HTTPClientError",
            "elastic_transport.ConnectionError",
            "elastic_transport.ConnectionTimeout",
            "google.RetryError",
            "google.TransportError",
            "http.BadStatusLine",
            "http.IncompleteRead",
            "httpcore.NetworkError",
            "httpcore.ProxyError",
            "httpcore.RemoteProtocolError",
            "httpcore.TimeoutException",
            "httpx.TransportError",
            "httpx2.TransportError",
            "kombu.OperationalError",
            "langchain_core.ModelAPIError",
            "langchain_core.ModelConnectionError",
            "langchain_core.ModelTimeoutError",
            "psycopg.OperationalError",
            "psycopg2.InterfaceError",
            "psycopg2.OperationalError",
            "pymongo.AutoReconnect",
            "pymongo.NetworkTimeout",
            "redis.BusyLoadingError",
            "redis.ClusterDownError",
            "redis.ConnectionError",
            "redis.ReadOnlyError",
            "redis.TimeoutError",
            "redis.TryAgainError",
            "requests.ChunkedEncodingError",
            "requests.ConnectionError",
            "requests.RetryError",
            "requests.Timeout",
            "sqlalchemy.TimeoutError",
            "subprocess.TimeoutExpired",
            "urllib.URLError",
            "urllib3.MaxRetryError",
            "urllib3.ProtocolError",
            "urllib3.ProxyError",
            "urllib3.TimeoutError",
            "websockets.ConnectionClosedError",
        ),
        "transient",
    ),
    "langchain_core.ModelRateLimitError": "rate_limited",
    **dict.fromkeys(
        (
            # Beneath a class above, and yet the caller's mistake.
            "httpx.LocalProtocolError",
            "httpx.UnsupportedProtocol",
            "httpx2.LocalProtocolError",
            "httpx2.UnsupportedProtocol",
            "redis.AuthenticationError",
            "redis.AuthorizationError",
            # Known, so that what they were raised from is not asked.
            "jsonschema.SchemaError",
            "jsonschema.ValidationError",
            "langchain_core.ModelError",
            "langchain_core.OutputParserException",
            "pydantic_core.ValidationError",
        ),
        "permanent",
    ),
}
# The same name in every client that one generator makes (openai, anthropic, groq, …), and in others by habit.
_CLASSES_ANYWHERE: dict[str, Kind] = {
    "APIConnectionError": "transient",
    "APITimeoutError": "transient",
    "RateLimitError": "rate_limited",
    "RateLimitException": "rate_limited",
    "TooManyRequestsError": "rate_limited",
}


def of_client(error: BaseException) -> Verdict | None:
    """What the exception of a client library means; None for one that is not known."""
    codes = set(_codes(error))
    return (
        _refused(error, codes)
        or _by_code(error, codes, _AWS_CODES)
        or _by_grpc(error)
        or _by_http(error, codes)
        or _by_code(error, codes, _STREAM_CODES)
        or _by_sqlstate(error)
        or _by_class(error)
    )


def http_status(error: BaseException) -> int | None:
    """The status of the HTTP answer behind this exception, from 400 to 599; None where there is none."""
    response = read(error, "response")
    candidates = [
        read(error, "status_code"),
        read(error, "http_status"),
        read(error, "status"),
        read(response, "status_code"),
        read(response, "status"),
        item(response, "ResponseMetadata", "HTTPStatusCode"),
    ]
    # Not everybody's `code`: an SMTP client's 550 means the opposite of HTTP's.
    if _modules(error) & {"google", "urllib"}:
        candidates.append(read(error, "code"))
    for candidate in candidates:
        if isinstance(candidate, int) and 400 <= candidate <= 599:
            return int(candidate)
    return None


def _refused(error: BaseException, codes: set[str]) -> Verdict | None:
    for cls in type(error).__mro__:
        if cls.__name__ in _REFUSED_CLASSES:
            return Verdict("permanent", why=cls.__name__)
    for code in sorted(codes & _REFUSED_CODES):
        return Verdict("permanent", why=code)
    status = http_status(error)
    if status is not None and (status == 429 or status >= 500):
        text = _text(error)
        for phrase in _REFUSED_PHRASES:
            if phrase in text:
                return Verdict("permanent", why=f"HTTP {status}: {phrase}")
    return None


def _by_code(error: BaseException, codes: set[str], kinds: dict[str, Kind]) -> Verdict | None:
    for code in sorted(codes & kinds.keys()):
        return _said(kinds[code], error, code)
    return None


def _by_grpc(error: BaseException) -> Verdict | None:
    status = read(error, "grpc_status_code")
    if status is None and "grpc" in _modules(error):
        try:
            status = error.code()  # type: ignore[attr-defined]
        except Exception:
            return None
    name = read(status, "name")
    return _said(_GRPC.get(name, "permanent"), error, f"gRPC {name}") if isinstance(name, str) else None


def _by_http(error: BaseException, codes: set[str]) -> Verdict | None:
    status = http_status(error)
    if status is None:
        return None
    why = f"HTTP {status}"
    if status == 429:
        return _said("rate_limited", error, why)
    if status >= 500 or status in (408, 425) or (status == 409 and _is_lock(error, codes)):
        return _said("transient", error, why)
    return Verdict("permanent", why=why)


def _is_lock(error: BaseException, codes: set[str]) -> bool:
    """Whether a 409 says that a lock was not got in time, and not that something exists already."""
    # The clients of these two say so in their own rules for retries.
    return any(map(_LOCK.search, codes)) or bool(_modules(error) & {"openai", "anthropic"})


def _by_sqlstate(error: BaseException) -> Verdict | None:
    if read(error, "connection_invalidated") is True:  # SQLAlchemy: the connection broke while it was used
        return Verdict("transient", why="connection lost")
    original = read(error, "orig")  # SQLAlchemy keeps the driver's own exception here
    if isinstance(original, BaseException) and original is not error:
        return _by_sqlstate(original) or _by_class(original)
    state = read(error, "sqlstate") or read(error, "pgcode")
    if not isinstance(state, str) or len(state) != 5:
        return None
    kind: Kind = "transient" if state in _SQLSTATES or state.startswith("08") else "permanent"
    return Verdict(kind, why=f"SQLSTATE {state}" if state.isalnum() else "SQLSTATE")


def _by_class(error: BaseException) -> Verdict | None:
    for cls in type(error).__mro__:
        name = cls.__name__
        kind = _CLASSES.get(f"{_root(cls)}.{name}") or _CLASSES_ANYWHERE.get(name)
        if kind is not None:
            return _said(kind, error, type(error).__name__)
    return None


def _said(kind: Kind, error: BaseException, why: str) -> Verdict:
    """A verdict with the time to wait, where one that comes again was given it."""
    return Verdict(kind, None if kind == "permanent" else seconds_said(error), why)


def _codes(error: BaseException) -> Iterator[str]:
    """The words by which the answer names its reason, in lower case: AWS has each in two spellings."""
    body = read(error, "body")
    found = (
        read(error, "code"),
        read(error, "type"),
        item(body, "code"),
        item(body, "type"),
        item(body, "error", "code"),
        item(body, "error", "type"),
        item(body, "innererror", "code"),
        item(body, "error", "innererror", "code"),
        item(read(error, "response"), "Error", "Code"),
    )
    return (code.lower() for code in found if isinstance(code, str))


def _text(error: BaseException) -> str:
    """The beginning of the exception's message, to look into; it is never kept."""
    try:
        return str(error)[:4000].lower()
    except Exception:
        return ""


def _modules(error: BaseException) -> set[str]:
    return {_root(cls) for cls in type(error).__mro__}


def _root(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]
