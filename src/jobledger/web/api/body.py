"""The JSON body of a request, refused if it is too large or has another content type."""

import json
from typing import Any, Final

from fastapi import HTTPException, Request

MAX_BODY_BYTES: Final = 2 * 1024 * 1024


async def read_body(request: Request) -> bytes:
    """Read a body with the content type of JSON.

    The content type protects against cross-site requests: a page of another site can make a user's browser send other
    content types, but JSON only after a CORS preflight.

    Raises:
        HTTPException: 415, another content type; 413, longer than `MAX_BODY_BYTES`.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise HTTPException(415, f"Content-Type is {content_type or 'missing'!r}; say 'application/json'.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Parse the body.

    Raises:
        HTTPException: 422, it is not JSON.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # not UTF-8 and absurdly long numbers are ValueErrors too
        raise HTTPException(422, f"The body is not JSON: {error}") from None


def _too_large() -> HTTPException:
    return HTTPException(413, f"The body is larger than {MAX_BODY_BYTES:,} bytes.", headers={"Connection": "close"})
