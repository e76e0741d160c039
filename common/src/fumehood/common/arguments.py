"""The body of a job: a call's arguments as bytes, and back.

Apart from the envelope around it, for a sandbox needs the one and not the other.
"""

from __future__ import annotations

from fumehood.common.codec import decode, encode
from fumehood.common.errors import DecodeError, PayloadTooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fumehood.common.task import Call


def encode_arguments(call: Call[Any], maximum: int) -> bytes:
    """A call's arguments as a body. Raises ``InvalidArguments``, ``PayloadTooLarge``."""
    # An array of the two, joined from parts that are encoded apart for the sake of their paths.
    body = b"\x92" + encode(list(call.args), "args") + encode(dict(call.kwargs), "kwargs")
    if len(body) > maximum:
        raise PayloadTooLarge(
            f"the arguments of {call.task.name} take {len(body)} bytes, "
            f"max_arguments is {maximum}: store the data and pass a reference to it"
        )
    return body


def decode_arguments(body: bytes | memoryview) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments of a body. Raises ``DecodeError``."""
    parts: list[Any] = decode(body)
    if type(parts) is not list or len(parts) != 2:
        raise DecodeError("a job's body is an array of two: positional and named arguments")
    args: list[Any] = parts[0]
    kwargs: dict[str, Any] = parts[1]
    if type(args) is not list or type(kwargs) is not dict:
        raise DecodeError("a job's body holds an array and a map, in this order")
    if not all(type(name) is str for name in kwargs):
        raise DecodeError("names of arguments must be text")
    return args, kwargs
