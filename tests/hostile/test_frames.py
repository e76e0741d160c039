"""Arbitrary bytes from a sandbox: nothing that reads them raises, blocks or grows.

``fuzz_frames.py`` does the same by coverage, for as long as one likes.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile.frames import LETTERS, feed, plausible

_EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True)
_bodies = st.binary(max_size=400) | st.builds(plausible, st.integers(0, 1 << 32))
_frames = st.builds(bytes.__add__, st.sampled_from(LETTERS), _bodies) | st.binary(max_size=64)


@_EXAMPLES
@given(st.lists(_frames, max_size=8))
def test_any_frames(frames: list[bytes]) -> None:
    feed(frames)


@_EXAMPLES
@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
                    | st.binary(max_size=20) | st.text(max_size=20),
                    lambda each: st.lists(each, max_size=4)
                    | st.dictionaries(st.text(max_size=4), each, max_size=4), max_leaves=12),
       st.sampled_from(LETTERS))  # fmt: skip
def test_any_values(value: Any, letter: bytes) -> None:
    feed([letter + msgpack.packb(value)])


@_EXAMPLES
@given(st.floats(), st.integers(0, 12))
def test_any_start(at: float, size: int) -> None:
    channel = feed([b"R" + struct.pack("d", at)[:size]], ready=False)
    assert channel.ready_at <= time.monotonic()


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for letter in LETTERS:
        for count in (1, 2, 3, 100):
            feed([letter + b"\x90"], fds=count)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_claims_to_be_large_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claims = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
              b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01",
              b"\xdd\x00\x00\xff\xf0" * 10_000]  # fmt: skip
    for letter in LETTERS:
        for claim in claims:
            feed([letter + b"\x93" + claim, letter + claim])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_flood_is_read_in_portions() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        ours.setblocking(False)
        sent = 0
        try:
            while True:
                sent += bool(theirs.send(b"P\x93\xcb?\xe0\0\0\0\0\0\0\xa0\xc0"))
        except BlockingIOError:
            pass
        started = time.monotonic()
        channel = feed([], over=ours)
        assert channel.fault == ""
        assert sent > 64
        assert time.monotonic() - started < 0.1
