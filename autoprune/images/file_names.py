"""The image file that a name means, where annotations were written on another machine or by a server."""

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""


def readings(text: str) -> Iterator[str]:
    """The names that a text can mean, the most literal first.

    After the name itself: with ``/`` for a backslash; the path of a URL, or that in its ``d=`` (Label
    Studio's ``/data/local-files/?d=…``); each without more and more of its first folders, down to the bare
    name; and that without the prefix of Label Studio's uploads.
    """
    seen = {text}
    yield text
    for path in _paths(text):
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) not in seen:
                seen.add(name)
                yield name
        if parts and (bare := UPLOAD_PREFIX.sub("", parts[-1], count=1)) not in seen:
            seen.add(bare)
            yield bare


def _paths(text: str) -> Iterator[str]:
    yield text
    try:
        address = urlsplit(text)
        inner = parse_qs(address.query).get("d", [])
    except ValueError:  # such as brackets that are no address
        return
    yield from inner
    if address.scheme in ("http", "https", "file", "s3", "gs"):
        yield unquote(address.path)
    elif "%" in text:
        yield unquote(text)
