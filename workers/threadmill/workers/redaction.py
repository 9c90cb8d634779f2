"""Text without the secrets that it holds: keys of the common providers, passwords, tokens, private keys.

A secret is told by its form (`sk-ant-…`, a JWT, the password in a URL) or by the name before it
(`api_key=…`, `"password": "…"`, `Authorization: …`). What is neither is not recognised: a graph whose
errors hold secrets of another kind names a `redact` of its own in its policy. Where in doubt the text is
left out: a word too few in a traceback costs less than a key in a table.

Every pattern takes time linear in the length of the text: each begins with a literal, what follows is
consumed whether it is a secret or not, and wherever a search may end in vain its length is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

REDACTED = "[redacted]"

# How far before a bare secret the name may stand that gives it away.
_NEARBY = 60

# Not inside a longer word; an escape (\n in a repr, %3D in a URL) is no part of one.
_START = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_END = r"(?![A-Za-z0-9])"

# A literal that must be in the text, and the key that it belongs to. Looking for the literal first is what
# makes ordinary text cheap.
_FORMS: list[tuple[str, str]] = [
    ("sk-ant-", r"sk-ant-[\w-]{12,}"),
    ("sk-", r"sk-(?:proj|svcacct|admin|or-v1|lf)-[\w-]{12,}"),
    ("AKIA", rf"{_START}AKIA[A-Z0-9]{{16}}{_END}"),
    ("ASIA", rf"{_START}ASIA[A-Z0-9]{{16}}{_END}"),
    ("AIza", r"AIza[\w-]{30,}"),
    ("ya29.", rf"{_START}ya29\.[\w-]{{20,}}"),
    ("GOCSPX-", r"GOCSPX-[\w-]{20,}"),
    ("gh", r"gh[pousr]_[A-Za-z0-9]{20,}"),
    ("github_pat_", r"github_pat_\w{20,}"),
    ("gl", r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|imt|agent|oas)-[\w-]{16,}(?:\.[\w-]+)*+"),
    ("xox", r"xox[a-z]-[\w-]{8,}"),
    ("xapp-", r"xapp-[\w-]{16,}"),
    ("hooks.slack.com/", r"(?<=hooks\.slack\.com/)(?:services|workflows|triggers)/[\w/-]{16,}"),
    ("k_live_", rf"{_START}[sr]k_live_\w{{10,}}"),
    ("k_test_", rf"{_START}[sr]k_test_\w{{10,}}"),
    ("whsec_", rf"{_START}whsec_[\w+/=]{{16,}}"),
    ("hf_", rf"{_START}hf_[A-Za-z0-9]{{20,}}"),
    ("SG.", rf"{_START}SG\.[\w-]{{16,64}}\.[\w-]{{16,}}"),
    ("SK", rf"{_START}SK[0-9a-f]{{32}}{_END}"),
    ("npm_", rf"{_START}npm_[A-Za-z0-9]{{30,}}"),
    ("pypi-", rf"{_START}pypi-AgE[\w-]{{16,}}"),
    ("gsk_", rf"{_START}gsk_[A-Za-z0-9]{{20,}}"),
    ("xai-", rf"{_START}xai-[A-Za-z0-9]{{20,}}"),
    ("pplx-", rf"{_START}pplx-[A-Za-z0-9]{{20,}}"),
    ("tvly-", rf"{_START}tvly-[\w-]{{16,}}"),
    ("r8_", rf"{_START}r8_[A-Za-z0-9]{{30,}}"),
    ("lsv2_", rf"{_START}lsv2_[a-z]{{2}}_\w{{20,}}"),
    ("dapi", rf"{_START}dapi[0-9a-f]{{32}}"),
    ("hvs.", rf"{_START}hvs\.[\w-]{{20,}}"),
    ("eyJ", rf"{_START}eyJ[\w-]{{8,}}\.[\w-]{{8,}}\.[\w-]*"),
]
_BY_FORM = [(hint, re.compile(pattern)) for hint, pattern in _FORMS]

# `sk-` alone begins words too (sk-learn-based-…), so what follows must look like chance.
_SK = re.compile(rf"{_START}sk-([\w-]{{16,}})")

_PRIVATE_KEY_WORDS = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = re.compile(
    rf"-----BEGIN {_PRIVATE_KEY_WORDS}(?:[^-]|-(?!----))*+-----END {_PRIVATE_KEY_WORDS}"
)
# One that was cut off: its head, and the lines of base64 that are left.
_CUT_PRIVATE_KEY = re.compile(
    rf"-----BEGIN {_PRIVATE_KEY_WORDS}(?:(?:\s|\\[nrt]|\|)*+[A-Za-z0-9+/=]{{16,}}+)++"
)

_URL = re.compile(
    r"(://[^\s:/?#@\"'<>]{0,256}:)"
    # Up to the last @ before a slash; else, as people do not escape a slash in a password, up to the next
    # one, unless what stands there is a port.
    r"(?:[^\s/\"'<>]{1,512}@|(?!\d{1,5}[/?#])[^\s@\"'<>]{1,512}@)"
)

_SCHEME = re.compile(r"\b(bearer|basic)((?:\s|%20|\+){1,4})([\w.~+/=-]{6,})", re.IGNORECASE)

_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-[a-z-]{0,24}?(?:key|token|secret|signature)|api-?key)"
    r"(\\{0,3}[\"']?\s{0,3}[:=,]\s{0,3}(?:b(?=[\"']))?)"
    # Quoted, or to the end of the line, in which a cookie is all and another header a word or two.
    r"(?:(\\{0,3}[\"'])([^\"'\\\n]++)|((?<=cookie: )[^\n\"']++|(?:[a-z][\w-]{2,15}\s)?[^\s\"',;]++))",
    re.IGNORECASE,
)
_SCHEMES = re.compile(
    r"(?:basic|bearer|token|digest|apikey|api-key|key|negotiate|aws4-hmac-sha256)\s"
    r"(?!(?:token|header|scheme|auth\w*|credentials?|is|was|not|missing|required|invalid|expired)\b)\S",
    re.IGNORECASE,
)

_NAMES = (
    r"pass(?:word|wort|wd|phrase|code)|pwd|secret|token|credentials?"
    r"|(?:api|access|secret|account|signing|encryption|private|shared|master|auth|service|subscription)"
    r"[ _-]?(?:access[_-]?)?key|signature|(?<![a-z0-9])(?:pass|sig|key|auth)"
)
_QUOTE = r"\\{0,3}[\"']"
_ASSIGNMENT = re.compile(
    rf"(?P<name>{_NAMES})"
    # "name": or ["name"] = or name: str = or name= or name%3D
    rf"(?P<sign>(?:{_QUOTE})?\]?\s{{0,3}}(?::\s{{0,3}}[A-Za-z][\w.\[\]| ]{{0,40}}?=\s{{0,3}}(?={_QUOTE})"
    r"|:?={1,2}>?|:|%3D)\s{0,3})"
    rf"(?:[bBrRfFuU]{{0,2}}(?:(?P<quote>\"{{3}}|'{{3}}|\"|')(?P<quoted>(?:[^\\\"']|\\[\s\S]|(?!(?P=quote))[\"'])*+)(?P=quote)"
    # In a string within a string; the quotes of a third are preceded by one more backslash.
    r"|(?P<escaped>\\{1,3}[\"'])(?P<inner>(?:(?!(?<!\\)(?P=escaped))[^\n])*+)"
    r"|(?P<open>[\"'])(?P<rest>[^\n]*+))"
    r"|(?P<bare>[^\s\"'&;]{1,256}+))",
    re.IGNORECASE,
)
_REST_OF_BARE = re.compile(r"[^\s\"'&;]*+")
_LINE_BEFORE_NAME = re.compile(r"(?:^|\n)[ \t-]*[\w.-]*\Z")
_ELEMENT = re.compile(rf"(<[\w:.-]{{0,40}}?(?:{_NAMES})>)([^<]{{1,4096}})(?=</)", re.IGNORECASE)

# What much else is called, too: a sort's key, a test's pass.
_WEAK = frozenset({"key", "pass", "auth", "sig", "signature"})
_NO_SECRETS = re.compile(
    r"(?:str|bytes|int|float|bool|object|any|none|true|false|null|nil|string|number|required|missing|invalid"
    r"|optional|undefined|empty|unset|field|value|the|a|an|is|must|not|was|has|of|for|expired|error"
    r"|\.{3}|…|\*+|secretstr|optional\[.*)[.!]?",
    re.IGNORECASE,
)
_ENDS_LIKE_NAME = re.compile(rf"(?:[A-Za-z_]\w*\.)*\w*(?:{_NAMES})", re.IGNORECASE)
_OF_SETTINGS = re.compile(r"(?:self|cls|os|config|settings|env|request|kwargs|args|params|options)\.[\w.]+")
_WORD = re.compile(r"[^\W\d_]+(?:[.,:;!?)\]}]*)")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# 40 characters of an AWS secret, 88 of an Azure account's key: no more than base64, but for the name nearby.
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=])(?:[A-Za-z0-9+/]{86}==|[A-Za-z0-9+/]{40})(?![A-Za-z0-9+/=])")
_NEAR = re.compile(r"aws|azure|amazon|secret|account.?key|access.?key|storage.?key", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with "[redacted]" for each secret in it. It never raises."""
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(REDACTED, text)
        text = _CUT_PRIVATE_KEY.sub(REDACTED, text)
    if "://" in text:
        text = _URL.sub(rf"\1{REDACTED}@", text)
    for hint, pattern in _BY_FORM:
        if hint in text:
            text = pattern.sub(REDACTED, text)
    if "sk-" in text:
        text = _SK.sub(_chance, text)
    lower = text.lower()
    for hints, replace in _BY_NAME:
        if any(hint in lower for hint in hints):
            text = replace(text)
    return text


def _chance(match: re.Match[str]) -> str:
    return REDACTED if _is_mixed(match[1]) else match[0]


def _of_scheme(match: re.Match[str]) -> str:
    """Bearer and basic are words as well: "basic authentication" holds no credentials."""
    secret = _is_mixed(match[3]) or len(match[3]) >= 24
    return f"{match[1]}{match[2]}{REDACTED}" if secret else match[0]


def _of_header(match: re.Match[str]) -> str:
    name, value = match[1].lower(), match[4] or match[5]
    if name.endswith("cookie"):
        secret = "=" in value
    else:
        secret = bool(_SCHEMES.match(value)) or _is_mixed(value.partition(" ")[0])
    if not secret or REDACTED in value:
        return match[0]
    return f"{match[1]}{match[2]}{match[3] or ''}{REDACTED}"


def _assignments(text: str) -> str:
    """The text without what is assigned to a secret's name. A value that is left may hold another one."""
    pieces, at = [], 0
    while match := _ASSIGNMENT.search(text, at):
        left = match.end("sign")
        value, end = _of_assignment(match)
        if value is None:
            pieces.append(text[at:left])
            at = left
        else:
            pieces += (text[at:left], value)
            at = end
    return "".join(pieces) + text[at:]


def _of_assignment(match: re.Match[str]) -> tuple[str | None, int]:
    """What stands for the value, and where that ends; None to leave it."""
    if match["bare"] is not None:
        return _of_bare(match)
    opening = match["quote"] or match["escaped"] or match["open"]
    (value,) = (match[group] for group in ("quoted", "inner", "rest") if match[group] is not None)
    name = match["name"].lower()
    if value in ("", REDACTED) or (name in _WEAK and not _is_random(value)):
        return None, match.end("sign")
    before = match.string[match.end("sign") : match.end()].partition(opening)[0]  # b"…", f"…"
    return f"{before}{opening}{REDACTED}{match['quote'] or ''}", match.end()


def _of_bare(match: re.Match[str]) -> tuple[str | None, int]:
    """A value without quotes ends where it looks as if it did: `token=abc), user=…`."""
    value = match["bare"]
    secret = value.rstrip(",.)]}")
    rest = value[len(secret) :]
    if _is_left(match, secret, rest):
        return None, match.end("sign")
    end = _REST_OF_BARE.match(match.string, match.end())
    assert end is not None
    return REDACTED + (rest if not end[0] else ""), end.end()


def _is_left(match: re.Match[str], value: str, rest: str) -> bool:
    name = match["name"].lower()
    if value.startswith(REDACTED[:-1]):
        return (value + rest).rstrip(",.)}") == REDACTED
    if _NO_SECRETS.fullmatch(value) or _is_code(match, value, rest):
        return True
    if name in ("sig", "signature"):
        return len(value) < 32
    if name in _WEAK:
        return not _is_random(value)
    if name == "pwd":
        return value.startswith("/")  # the working directory, of an environment
    if match["sign"].strip().endswith((":", "=>")) and match["sign"][-1:].isspace():
        # "Unexpected token: name" is prose; "password: hunter2" and a line of YAML are none.
        return len(value) < 4 or (_WORD.fullmatch(value) is not None and not _is_line(match))
    return False


def _is_line(match: re.Match[str]) -> bool:
    """Whether the name and its value are alone on their line."""
    before = match.string[max(0, match.start() - _NEARBY) : match.start()]
    if match.start() > _NEARBY and "\n" not in before:
        return False
    return match.string[match.end() : match.end() + 1] in ("", "\n") and bool(
        _LINE_BEFORE_NAME.search(before)
    )


def _of_element(match: re.Match[str]) -> str:
    return f"{match[1]}{REDACTED}"


def _of_neighbour(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - _NEARBY) : match.start()]
    return REDACTED if _is_random(match[0]) and _NEAR.search(before) else match[0]


def _is_code(match: re.Match[str], value: str, rest: str) -> bool:
    """Whether it is an expression that gives the secret, as in `token=get_token()`, and not the secret."""
    if match["sign"].strip().endswith("=="):
        return True
    word = value[:200]
    if word[:1] in ("(", "[", "{") or re.match(r"[A-Za-z_][\w.]*[(\[]", word + rest):
        return True
    if match["name"].isupper() or match.string[match.end() : match.end() + 1] in ("&", ";"):
        return False  # of an environment, a query, a DSN
    first = re.split(r"[,()\[\]]", word, maxsplit=1)[0]
    return bool(_ENDS_LIKE_NAME.fullmatch(first) or _OF_SETTINGS.fullmatch(first))


def _is_mixed(value: str) -> bool:
    """Whether no word has this form: it has a digit, or capitals inside, or a padding."""
    return bool(re.search(r"\d|[a-z][A-Z]|=$", value[:4096]))


def _is_random(value: str) -> bool:
    """Whether it is long and of all kinds of characters: neither a word nor a uuid nor a hex digest."""
    head = value[:4096]
    return (
        len(head) >= 20
        and not _UUID.fullmatch(head)
        and " " not in head
        and all(re.search(kind, head) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    )


_BY_NAME: list[tuple[tuple[str, ...], Callable[[str], str]]] = [
    (("authorization", "cookie", "x-", "api"), partial(_HEADER.sub, _of_header)),
    (("bearer", "basic"), partial(_SCHEME.sub, _of_scheme)),
    (("pass", "pwd", "secret", "token", "credential", "key", "sig", "auth"), _assignments),
    (("</",), partial(_ELEMENT.sub, _of_element)),
    (
        ("aws", "azure", "amazon", "secret", "account", "access", "storage"),
        partial(_BASE64.sub, _of_neighbour),
    ),
]
