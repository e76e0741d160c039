"""Giving up capabilities: what is then refused, and that nothing brings them back."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

import pytest
from support.confined import Ending, ending_of, is_unconfined

from fumehood.worker.sandbox import capabilities
from fumehood.worker.sandbox.kernel import prctl
from fumehood.worker.sandbox.syscalls import call

NOBODY = 65534
PR_GET_SECUREBITS, PR_CAP_AMBIENT = 27, 47
DENIED = Ending(errno=errno.EPERM)

needs_privilege = pytest.mark.skipif(
    not is_unconfined(), reason="only who has capabilities can give them up"
)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def of_a_program() -> dict[str, int]:
    """The sets that a program executed from here gets."""
    out = subprocess.run(["/bin/cat", "/proc/self/status"], capture_output=True, check=True).stdout
    lines = [line.split() for line in out.decode().splitlines() if line.startswith("Cap")]
    return {name.rstrip(":"): int(mask, 16) for name, mask in lines}


def empty_all_but_the_bounding_set() -> None:
    call("capset", capabilities._header_address, capabilities._nothing_address)


@needs_privilege
def test_every_set_is_empty_afterwards() -> None:
    held = ending_of(capabilities.held, capabilities.drop_all).value
    assert held == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)
    assert ending_of(capabilities.has_none, capabilities.drop_all).value is True
    assert ending_of(capabilities.has_none).value is False


@needs_privilege
def test_what_takes_a_privilege_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    acts = {
        "chown": lambda: os.chown(tmp_path / "file", NOBODY, NOBODY),
        "setuid": become_nobody,
        "mount": lambda: bool(call("unshare", 0x00020000)),
        "nice": lambda: bool(os.nice(-1)),
        "chroot": lambda: os.chroot("/"),
    }
    for name, act in acts.items():
        assert ending_of(act).errno == 0, name
        assert ending_of(act, capabilities.drop_all) == DENIED, name


@needs_privilege
def test_no_program_brings_them_back() -> None:
    assert ending_of(of_a_program).value["CapPrm"] != 0
    # Root's programs get all that the bounding set leaves: emptying the others is not enough.
    assert ending_of(of_a_program, empty_all_but_the_bounding_set).value["CapPrm"] != 0
    assert not any(ending_of(of_a_program, capabilities.drop_all).value.values())


@needs_privilege
def test_ambient_ones_go_as_well() -> None:
    chown = 0

    def raise_ambient() -> None:
        both = ctypes.create_string_buffer(24)
        call("capget", capabilities._header_address, ctypes.addressof(both))
        words = memoryview(both).cast("B").cast("I")
        words[2] = words[1]  # what is permitted becomes inheritable
        call("capset", capabilities._header_address, ctypes.addressof(both))
        assert ctypes.CDLL(None).prctl(PR_CAP_AMBIENT, 2, chown, 0, 0) == 0

    held = ending_of(capabilities.held, raise_ambient).value
    assert held["CapAmb"] == 1 << chown
    assert ending_of(capabilities.has_none, raise_ambient, capabilities.drop_all).value is True


@needs_privilege
def test_the_zygote_takes_the_dear_steps_once() -> None:
    """As a node does it: the bounding set before a fork; user ids, then the rest, after it."""

    def child() -> tuple[bool, bool]:
        before = capabilities.held()["CapPrm"] != 0
        become_nobody()
        capabilities.drop_all()
        return before, capabilities.has_none()

    def zygote() -> Ending:
        return ending_of(child)

    def drop_bounding() -> None:
        assert capabilities.drop_bounding() is True

    assert ending_of(zygote, drop_bounding).value == Ending(value=(True, True))


@needs_privilege
def test_a_user_id_change_still_clears_them_by_itself() -> None:
    """Should the last step be forgotten: NO_SETUID_FIXUP would have them kept."""

    def act() -> int:
        become_nobody()
        return capabilities.held()["CapPrm"]

    assert ending_of(act, capabilities.drop_bounding) == Ending(value=0)


@needs_privilege
def test_securebits_are_locked() -> None:
    def bits() -> int:
        return int(ctypes.CDLL(None).prctl(PR_GET_SECUREBITS, 0, 0, 0, 0))

    def undo() -> None:
        prctl(28, 0)

    assert ending_of(bits).value == 0
    assert ending_of(bits, capabilities.drop_bounding).value == 0b11100011
    assert (ending_of(undo), ending_of(undo, capabilities.drop_bounding)) == (Ending(), DENIED)


@needs_privilege
def test_who_has_none_keeps_the_bounding_set_and_is_told_so() -> None:
    def act() -> tuple[bool, bool]:
        dropped = capabilities.drop_bounding()
        capabilities.drop_all()
        return dropped, capabilities.has_none()

    assert ending_of(act, become_nobody) == Ending(value=(False, False))


@needs_privilege
def test_another_process_is_asked_from_outside() -> None:
    ready, end = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            capabilities.drop_all()
            os.write(ready[1], b"1")
            os.close(end[1])
            os.read(end[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    try:
        assert os.read(ready[0], 1) == b"1"
        assert capabilities.has_none(pid) is True
        assert capabilities.has_none() is False
    finally:
        for fd in (ready[0], *end):
            os.close(fd)
        os.waitpid(pid, 0)
