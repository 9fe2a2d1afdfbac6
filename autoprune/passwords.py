"""Passwords in URLs: masked wherever a URL is shown or stored, and put back where a connection is made.

A storage such as ``postgresql+psycopg2://me:secret@host/db`` is written as ``…://me:***@host/db``. Whoever
opens it takes the password from the command, from `VARIABLE`, or leaves it to the driver's own password file.
"""

import os
import re
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"
VARIABLE = "AUTOPRUNE_STORAGE"
"""Environment variable with the URL of a storage, its password included."""

_SECRET_KEY = re.compile(r"pass(?!file)|pwd|secret|token|api_?key|credential", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(password|passwd|pwd|secret|token)\s*=", re.IGNORECASE)
_ASSIGNED = re.compile(r"\b((?:password|passwd|pwd)\s*=\s*)[^\s;&'\"]+", re.IGNORECASE)
_ENTRY = re.compile(  # of a mapping as Python or JSON writes it
    r"""(['"]\w*(?:pass(?!file)|pwd|secret|token|api_?key|credential)\w*['"]\s*:\s*)"""
    r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,}{\[\]]+)""",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"""(?<![\w/\\])([\w.+-]+):([^\s'"()/\\][^\s'"()]*)@(?=[\w.\[-])""")
"""Of a URL without its scheme: ``me:secret@host/db``."""
_URL = re.compile(r"[\w+.-]+://[^\s'\"<>`|]+")

_known: dict[str, str] = {}  # by place, the URLs that this process was given with their passwords


def masked(url: str) -> str:
    """The URL with ``***`` for its password, and for each query parameter that holds one."""
    return _rewritten(url, MASK)


def place_of(url: str) -> str:
    """The URL without passwords, masked or not: equal for two that lead to the same place."""
    return _rewritten(url, None)


def has_password(url: str) -> bool:
    """Whether a password stands in the URL; a mask is none."""
    return masked(url) != url


def with_password(url: str) -> str:
    """The URL to connect by: where its password is masked or omitted, with the one that is known.

    That is the one of `VARIABLE`, if it names the same place, else one that this process was given before. If
    none is known, the mask goes, and the driver looks into its own password file.
    """
    place = place_of(url)
    if has_password(url):
        _known[place] = url
        return url
    configured = os.environ.get(VARIABLE, "").strip()
    if has_password(configured) and place_of(configured) == place:
        return configured
    return _known.get(place, place if MASK in url else url)


def hide(text: str, url: str | None = None) -> str:
    """A text without passwords: of URLs and mappings that it quotes, and those of ``url`` wherever they are.

    Args:
        text: such as the message of a driver.
        url: what the text is about, in full.
    """
    if url is not None:
        text = text.replace(url, masked(url))
    text = _URL.sub(lambda match: masked(match[0]), text)
    text = _USERINFO.sub(rf"\1:{MASK}@", text)
    text = _ENTRY.sub(rf"\1'{MASK}'", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    for secret in sorted(_secrets(url or ""), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return text


def _parts(url: str) -> tuple[str, str, str | None, str, list[str]]:
    """Scheme with ``://``, user, password (``None`` for none), from ``@`` to the query, and its parameters.

    Userinfo ends where SQLAlchemy ends it, at an ``@``; of several before the query, the last one, as those
    who do not encode a password mean it. A path that follows ``://`` at once is a file's and has no user.
    """
    scheme, mark, rest = url.partition("://")
    scheme, rest = (scheme + mark, rest) if mark else ("", url)
    before, _, _ = rest.partition("?")
    at = before.rfind("@") if "@" in before else rest.find("@")
    if rest.startswith("/") or at < 0 or ":" not in rest[:at]:
        user, password = "", None
    else:
        user, _, password = rest[:at].partition(":")
        rest = rest[at:]
    path, mark, query = rest.partition("?")
    return scheme, user, password, path, query.split("&") if mark else []


def _rewritten(url: str, mask: str | None) -> str:
    """The URL with ``mask`` for its passwords; ``None`` drops them and what they belong to."""
    scheme, user, password, path, parameters = _parts(url)
    userinfo = user if password is None or mask is None else f"{user}:{mask if password else ''}"
    kept = []
    for parameter in parameters:
        if _is_secret(parameter):
            if mask is not None:
                kept.append(f"{parameter.partition('=')[0]}={mask}")
        else:
            kept.append(parameter)
    return scheme + userinfo + path + (f"?{'&'.join(kept)}" if kept else "")


def _is_secret(parameter: str) -> bool:
    """Whether a query parameter ``key=value`` holds a password, also within a connection string."""
    key, _, value = parameter.partition("=")
    secret = _SECRET_KEY.search(unquote_plus(key)) or _SECRET_VALUE.search(unquote_plus(value))
    return value == MASK or bool(value and secret)


def _secrets(url: str) -> set[str]:
    """The passwords in a URL, in every form in which a driver may quote them."""
    _, _, password, _, parameters = _parts(url)
    # of one that is not encoded, drivers take parts for the host or the database
    secrets = {password or "", *re.split("[@/:?]", password or "")}
    for parameter in filter(_is_secret, parameters):
        value = unquote_plus(parameter.partition("=")[2])
        inner = re.findall(rf"{_SECRET_VALUE.pattern}\s*([^;\s]+)", value, re.IGNORECASE)
        secrets |= {parameter.partition("=")[2], *(each[-1] for each in inner)}
    forms = {form(secret) for secret in secrets for form in (str, unquote, unquote_plus)}
    forms |= {form(secret) for secret in forms for form in (quote, quote_plus, repr)}
    return {form for form in (each.strip("'\"") for each in forms) if form and form != MASK}
