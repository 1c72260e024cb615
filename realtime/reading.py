"""Reading what clients send over HTTP: bounded in size, in time and in kind.

Everything that cannot be used ends in a problem of the 400s; nothing is decoded before its size is
known to be allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from realtime.errors import BadRequestError, SlowError, TooLargeError
from realtime.settings import LIMITS

T = TypeVar("T")
_FORM_EXTRA_BYTES = 4096


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """Read at most `limit` bytes. Raises TooLargeError as soon as it is known, SlowError,
    BadRequestError when the client leaves in the middle."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 12 or int(declared) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError as error:
        text = f"The body must be sent within {seconds:.0f} seconds."
        raise SlowError("body-too-slow", text) from error
    except ClientDisconnect as error:
        raise BadRequestError("body-incomplete", "The body ended early.") from error
    return bytes(body)


async def read_json(request: Request, kind: type[T]) -> T:
    """Read and check a JSON body. Raises BadRequestError, TooLargeError, SlowError."""
    return decode_json(await read_body(request, LIMITS.json_bytes, LIMITS.json_s), kind)


def decode_json(body: bytes, kind: type[T]) -> T:
    """Bytes -> a message of `kind`. Raises BadRequestError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError("json-unusable", f"The JSON body cannot be used: {error}") from error


async def read_picture(request: Request, limit: int) -> tuple[bytes, dict[str, str]]:
    """Return picture bytes and text fields of an upload, raw or multipart.

    Fields of a raw upload come from the query; consent may also be a header.
    """
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    fields = dict(request.query_params)
    if "consent" in request.headers:
        fields["consent"] = request.headers["consent"]
    if kind != b"multipart/form-data":
        return await read_body(request, limit, LIMITS.upload_s), fields
    body = await read_body(request, limit + _FORM_EXTRA_BYTES, LIMITS.upload_s)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=1, max_fields=8, max_part_size=_FORM_EXTRA_BYTES
        )
        # Uploads stay in memory: nothing may spill into a temporary file.
        parser.spool_max_size = limit + _FORM_EXTRA_BYTES
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        raise BadRequestError("form-unusable", "The form could not be read.") from error
    data = b""
    for key, value in form.multi_items():
        if isinstance(value, str):
            fields[key] = value
        else:
            data = await value.read()
    await form.close()
    if not data:
        raise BadRequestError("picture-missing", "The form holds no picture.")
    return data, fields


def _too_large(limit: int) -> TooLargeError:
    size = f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 1024} kB"
    return TooLargeError("body-too-large", f"At most {size} can be sent here.")
