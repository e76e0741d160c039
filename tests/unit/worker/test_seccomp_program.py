"""The system call filter as a program: run here, instruction by instruction, for any machine."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.refused_calls import SET_UP, refused

from fumehood.worker.sandbox import seccomp
from fumehood.worker.sandbox.syscalls import (
    ARCHITECTURES,
    HIGHEST,
    UnknownArchitecture,
    architecture,
    call,
)

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
DENY, FORBID, ABSENT = ERRNO | errno.EPERM, ERRNO | errno.EACCES, ERRNO | errno.ENOSYS
BY_ARGUMENT = (
    "clone", "socket", "socketpair", "ioctl", "fcntl", "personality", "sched_setscheduler",
    "prlimit64",
)  # fmt: skip
# What most programs do most: read, write, close, futex, mmap, epoll_wait or epoll_pwait, getpid.
HOT = {"x86_64": (0, 1, 3, 202, 9, 232, 39), "aarch64": (63, 64, 57, 98, 222, 22, 172)}
GAPS = {
    "x86_64": [*range(337, 424)],
    "aarch64": [*range(244, 260), *range(295, 424)],
}
MACHINES = sorted(ARCHITECTURES)
WORDS = st.tuples(*[st.integers(0, (1 << 64) - 1)] * 6)
UPPER = st.integers(0, (1 << 32) - 1)


# --- a machine for the programs -------------------------------------------------------------


@cache
def program_of(machine: str, kind: str = "program") -> bytes:
    built: bytes = getattr(seccomp, kind)(machine)
    return built


@cache
def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


class Trace(NamedTuple):
    verdict: int
    loads: frozenset[int]  # the offsets that were looked at on the way
    steps: int


def packed(machine: str, number: int, words: Sequence[int] = (0,) * 6) -> bytes:
    return struct.pack("<IIQ6Q", number, ARCHITECTURES[machine].audit, 0, *words)


def trace(program: bytes, data: bytes) -> Trace:
    """What the kernel's interpreter does with a program and a struct seccomp_data."""
    code, at, word, loads, steps = instructions(program), 0, 0, set[int](), 0
    while True:
        operation, then, otherwise, value = code[at]
        at += 1
        steps += 1
        if operation == 0x06:
            return Trace(value, frozenset(loads), steps)
        if operation == 0x20:
            (word,) = struct.unpack_from("<I", data, value)
            loads.add(value)
            continue
        holds = {0x15: word == value, 0x35: word >= value, 0x45: word & value != 0}[operation]
        at += then if holds else otherwise


def run(program: bytes, machine: str, number: int, words: Sequence[int] = (0,) * 6) -> int:
    return trace(program, packed(machine, number, words)).verdict


def verdict(machine: str, name: str, *words: int) -> int:
    """The full filter's verdict on a call by name."""
    number = ARCHITECTURES[machine].numbers[name]
    return run(program_of(machine), machine, number, (*words, *(0,) * (6 - len(words))))


def expected(machine: str) -> dict[int, int]:
    """The verdict on each number that does not depend on arguments, none left out."""
    arch = ARCHITECTURES[machine]
    verdicts = dict.fromkeys(range(HIGHEST + 1), ALLOW)
    verdicts |= dict.fromkeys(GAPS[machine], ABSENT)
    verdicts |= {arch.numbers[name]: ERRNO | code for name, code in refused(machine).items()}
    for name in BY_ARGUMENT:
        del verdicts[arch.numbers[name]]
    beyond = [*range(HIGHEST + 1, 1200), (1 << 30) - 1, 1 << 31, (1 << 32) - 1]
    return verdicts | dict.fromkeys(beyond, ABSENT)


# --- the program ----------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
@given(words=WORDS)
def test_every_number_has_its_verdict_whatever_its_arguments(
    machine: str, words: tuple[int, ...]
) -> None:
    program = program_of(machine)
    verdicts = expected(machine)
    got = {number: run(program, machine, number, words) for number in verdicts}
    assert got == verdicts


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_and_x32_are_killed(machine: str) -> None:
    program = program_of(machine)
    own = ARCHITECTURES[machine].audit
    others = {arch.audit for arch in ARCHITECTURES.values()} | {0x40000003, 0x40000028, 0} - {own}
    for audit in others - {own}:
        for number in (0, 1, 20, HIGHEST + 1):
            data = struct.pack("<IIQ6Q", number, audit, 0, *(0,) * 6)
            assert trace(program, data).verdict == KILL
    x32 = KILL if machine == "x86_64" else ABSENT
    for number in (0, 39, 512, 547):
        assert run(program, machine, 1 << 30 | number) == x32


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", ["program", "base_program", "rest_program"])
def test_programs_are_ones_that_the_kernel_takes(machine: str, kind: str) -> None:
    code = instructions(program_of(machine, kind))
    assert 3 < len(code) <= 4096  # BPF_MAXINSNS
    assert code[-1][0] == 0x06
    for at, (operation, then, otherwise, value) in enumerate(code):
        assert operation in {0x06, 0x15, 0x20, 0x35, 0x45}
        if operation == 0x20:
            assert value % 4 == 0
            assert value < 64
        if operation in {0x15, 0x35, 0x45}:
            assert at + 1 + max(then, otherwise) < len(code)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernel_can_tell_at_loading_what_is_always_allowed(machine: str) -> None:
    """It runs no filter for a number whose verdict depends on number and architecture alone."""
    program = program_of(machine)
    for number, value in expected(machine).items():
        if value == ALLOW:
            assert trace(program, packed(machine, number)).loads == {0, 4}


@pytest.mark.parametrize("machine", MACHINES)
def test_hot_calls_are_decided_in_few_instructions(machine: str) -> None:
    for number in HOT[machine]:
        decided = trace(program_of(machine), packed(machine, number))
        assert decided.verdict == ALLOW
        assert decided.steps <= 11  # three to begin with, seven comparisons, the verdict


@pytest.mark.parametrize("machine", MACHINES)
def test_base_and_rest_together_are_the_whole(machine: str) -> None:
    programs = [program_of(machine, kind) for kind in ("base_program", "rest_program")]
    for number, value in expected(machine).items():
        base, rest = (run(program, machine, number) for program in programs)
        assert min(base, rest) == value  # none of these is a kill, and then the lower is stricter
    for name in SET_UP.split():
        assert run(programs[0], machine, ARCHITECTURES[machine].numbers[name]) == ALLOW


def test_a_jump_out_of_reach_is_an_error() -> None:
    code = seccomp.Assembler()
    code.jump("equal", 1, "far")
    for _ in range(256):
        code.load(0)
    code.place("far")
    code.answer(ALLOW)
    with pytest.raises(ValueError, match="spans 256 instructions"):
        code.assemble()


# --- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
class TestArguments:
    @given(low=st.integers(0, (1 << 32) - 1), upper=UPPER)
    def test_clone_makes_no_namespaces_and_no_siblings(
        self, machine: str, low: int, upper: int
    ) -> None:
        new = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000
        bad = low & (new | 0x40000000 | 0x00008000)
        assert verdict(machine, "clone", upper << 32 | low) == (DENY if bad else ALLOW)

    def test_threads_and_forks_may_be_cloned(self, machine: str) -> None:
        assert verdict(machine, "clone", 0x3D0F00) == ALLOW  # pthread_create in glibc
        assert verdict(machine, "clone", 0x1200011) == ALLOW  # fork in glibc
        assert verdict(machine, "clone", 0x4111) == ALLOW  # posix_spawn in glibc

    @given(family=st.integers(0, 100), upper=UPPER)
    def test_sockets_are_local(self, machine: str, family: int, upper: int) -> None:
        answer = ALLOW if family == socket.AF_UNIX else FORBID
        assert verdict(machine, "socket", upper << 32 | family) == answer
        assert verdict(machine, "socketpair", upper << 32 | family) == answer

    @given(upper=UPPER, fd=st.integers(0, (1 << 64) - 1))
    def test_terminals_take_no_input_from_a_task(self, machine: str, upper: int, fd: int) -> None:
        for request in (0x5412, 0x541C, 0x5423):
            assert verdict(machine, "ioctl", fd, upper << 32 | request) == DENY
            assert verdict(machine, "ioctl", request, upper << 32 | request + 1) == ALLOW

    @given(upper=UPPER)
    def test_leases_and_directory_notices_are_denied_and_locks_are_not(
        self, machine: str, upper: int
    ) -> None:
        for command in (1024, 1026):
            assert verdict(machine, "fcntl", 3, upper << 32 | command) == DENY
        for command in (*range(20), 36, 37, 38, 1025, *range(1027, 1045)):
            assert verdict(machine, "fcntl", 1024, upper << 32 | command) == ALLOW

    @given(persona=st.integers(1, (1 << 32) - 2), upper=UPPER)
    def test_personality_is_asked_or_reset(self, machine: str, persona: int, upper: int) -> None:
        assert verdict(machine, "personality", upper << 32 | persona) == DENY
        assert verdict(machine, "personality", upper << 32 | 0xFFFFFFFF) == ALLOW
        assert verdict(machine, "personality", upper << 32) == ALLOW

    @given(upper=UPPER)
    def test_no_policy_is_real_time(self, machine: str, upper: int) -> None:
        for policy in range(10):
            answer = ALLOW if policy in {0, 3, 5} else DENY
            for flag in (0, 0x40000000):
                word = upper << 32 | flag | policy
                assert verdict(machine, "sched_setscheduler", 0, word, 0) == answer

    @given(pid=st.integers(1, (1 << 32) - 1), upper=UPPER, at=st.integers(0, 63))
    def test_limits_are_set_on_nobody_else(
        self, machine: str, pid: int, upper: int, at: int
    ) -> None:
        assert verdict(machine, "prlimit64", upper << 32 | pid, 7, 1 << at) == DENY
        assert verdict(machine, "prlimit64", upper << 32 | pid, 7, 0, 1 << at) == ALLOW
        assert verdict(machine, "prlimit64", upper << 32, 7, 1 << at) == ALLOW


# --- the tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "header", "most_missing"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 10),
        ("aarch64", "/usr/include/asm-generic/unistd.h", 10),
    ],
)
def test_numbers_are_those_of_the_kernel_headers(
    machine: str, header: str, most_missing: int
) -> None:
    if not Path(header).exists():
        pytest.skip(f"no kernel headers: {header}")
    text = Path(header).read_text(encoding="utf-8")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text))
    numbers = ARCHITECTURES[machine].numbers
    compared = {name: int(known[name]) for name in numbers if name in known}
    assert compared == {name: numbers[name] for name in compared}
    assert len(numbers) - len(compared) < most_missing  # those newer than the headers
    assert all(number <= HIGHEST for number in numbers.values())
    # The generic header marks where architectures may add calls, and lists those for 32 bit.
    taken = {int(number) for name, number in known.items() if "time64" not in name} - {244}
    assert not taken & set(GAPS[machine])


def test_what_is_not_known_here_is_absent() -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        architecture("riscv64")
    assert caught.value.errno == errno.ENOSYS
    with pytest.raises(UnknownArchitecture, match="no_such_call"):
        call("no_such_call")
