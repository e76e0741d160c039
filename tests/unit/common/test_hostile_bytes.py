"""Bytes that nobody honest sends: always ``DecodeError``, soon, and in little memory."""

import itertools
import struct
import subprocess
import sys

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fumehood.common import decoding as codec
from fumehood.common.codec import decode, encode
from fumehood.common.errors import DecodeError


def ext(code: int, payload: bytes) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(payload), code) + payload


def moment(*parts: object) -> bytes:
    return ext(codec.EXT_DATETIME, msgpack.packb(list(parts)))


def array(items: list[bytes]) -> bytes:
    return b"\xdd" + struct.pack(">I", len(items)) + b"".join(items)


def colliding_keys(count: int) -> list[bytes]:
    """Tuples of -1 and -2, whose hashes are the same."""
    tuples = itertools.islice(itertools.product((-1, -2), repeat=16), count)
    return [ext(codec.EXT_TUPLE, msgpack.packb(list(each))) for each in tuples]


def nested_ext(depth: int, code: int) -> bytes:
    packed = b"\x90"
    for _ in range(depth):
        packed = b"\x91" + ext(code, packed)
    return packed


TEN_O_CLOCK = "2020-01-01T10:00:00"
WRONG = {
    "nothing": b"",
    "unused byte": b"\xc1",
    "trailing bytes": b"\xc0\xc0",
    "arrays in arrays": b"\x91" * 100_000 + b"\xc0",
    "maps in maps": b"\x81\xc0" * 100_000 + b"\xc0",
    "tuples in tuples": nested_ext(1000, codec.EXT_TUPLE),
    "sets in sets": nested_ext(1000, codec.EXT_SET),
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge text": b"\xdb\xff\xff\xff\xff",
    "huge binary": b"\xc6\xff\xff\xff\xff",
    "huge extension": b"\xc9\xff\xff\xff\xff\x01",
    "one key twice": b"\x82\xa1a\x01\xa1a\x02",
    "equal keys": b"\x82\x01\x01" + b"\xcb" + struct.pack(">d", 1.0) + b"\x02",
    "a map as key": b"\x81\x80\x01",
    "an array as key": b"\x81\x90\x01",
    "an array in a set": ext(codec.EXT_SET, b"\x91\x90"),
    "one element twice": ext(codec.EXT_FROZENSET, b"\x92\x01\x01"),
    "a map as tuple": ext(codec.EXT_TUPLE, b"\x80"),
    "surrogate": b"\xa3\xed\xa0\x80",
    "unknown extension": ext(99, b""),
    "unknown extension below 0": ext(-5, b""),
    "short timestamp": ext(-1, b"abc"),
    "huge timestamp": ext(-1, b"\xff" * 12),
    "moment with too little": moment(TEN_O_CLOCK),
    "moment of no format": moment("today", None, 0),
    "moment with two zones": moment(TEN_O_CLOCK + "+01:00", None, 0),
    "zone that is a folder": moment(TEN_O_CLOCK, "America", 0),
    "zone outside": moment(TEN_O_CLOCK, "../../../etc/passwd", 0),
    "zone with a null": moment(TEN_O_CLOCK, "a\0b", 0),
    "zone of another type": moment(TEN_O_CLOCK, True, 0),
    "offset beyond a day": moment(TEN_O_CLOCK, 10**15, 0),
    "fold beyond 1": moment(TEN_O_CLOCK, None, 2),
    "endless duration": ext(codec.EXT_TIMEDELTA, msgpack.packb([float("nan"), 0, 0])),
    "overlong duration": ext(codec.EXT_TIMEDELTA, msgpack.packb([2**63, 0, 0])),
    "short UUID": ext(codec.EXT_UUID, b"12"),
    "decimal of letters": ext(codec.EXT_DECIMAL, b"x"),
    "complex of three": ext(codec.EXT_COMPLEX, b"\x93\x01\x02\x03"),
    "complex of text": ext(codec.EXT_COMPLEX, msgpack.packb(["1j", 0])),
    "path of no encoding": ext(codec.EXT_PATH, b"\xff"),
    "integer of letters": ext(codec.EXT_BIGINT, b"xyz"),
    "integer of nothing": ext(codec.EXT_BIGINT, b""),
    "date of no calendar": ext(codec.EXT_DATE, b"2020-13-01"),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_wrong_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except DecodeError:
        return
    # What was read is a value like any other: the only difference may be how it is written.
    again = encode(value)
    assert encode(decode(again)) == again or "set" in repr(value)


@given(st.data())
def test_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(encode([(1, frozenset({2})), {"a": 2**70}, 1j]))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged))
    except DecodeError as cause:
        assert str(cause)  # noqa: PT017 - being refused is one of two good ends


def test_the_timestamp_of_msgpack_is_a_moment_in_utc() -> None:
    assert decode(ext(-1, struct.pack(">I", 0))).isoformat() == "1970-01-01T00:00:00+00:00"


def test_many_keys_of_one_hash_are_refused() -> None:
    keys = colliding_keys(3000)
    a_set = ext(codec.EXT_SET, array(keys))
    a_map = b"\xdf" + struct.pack(">I", len(keys)) + b"".join(key + b"\xc0" for key in keys)
    for data in (a_set, a_map):
        with pytest.raises(DecodeError, match="one hash"):
            decode(data)
    assert len(decode(ext(codec.EXT_SET, array(keys[:900])))) == 900


NASTY = """
import resource, struct, threading, time
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from fumehood.common.decoding import MAX_EXT_DEPTH, decode
from fumehood.common.errors import DecodeError

SIZE = 8 << 20

def deepest():
    packed = b"\\x91\\xc0"
    for _ in range(MAX_EXT_DEPTH):
        packed = b"\\x91" * 1000 + b"\\xc9" + struct.pack(">Ib", len(packed), 1) + packed
    return decode(packed)

# Arrays in arrays, each of which claims to hold as many items as the message has bytes.
header = b"\\xdd" + struct.pack(">I", SIZE - 1)
claims = header * 1000 + b"\\xc0" * (SIZE - 5000)
started = time.monotonic()
try:
    decode(claims)
except DecodeError:
    print("refused")
assert time.monotonic() - started < 5, "it took too long"
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmPeak"))
assert peak < 100 << 10, "it reserved memory for items that are not there"
value = deepest()
del value
thread = threading.Thread(target=deepest)
thread.start()
thread.join()
print("alive")
"""


def test_bombs_neither_crash_nor_fill_the_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", NASTY], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("refused\nalive\n", 0), ran.stderr
