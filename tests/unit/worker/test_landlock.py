"""Landlock: what a ruleset leaves, what it takes, and what goes on without it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from support.confined import Ending, ending_of, is_unconfined

from fumehood.worker.sandbox import landlock
from fumehood.worker.sandbox.landlock import Ruleset

ABI = landlock.abi()
LIBRARIES = ["/usr", "/lib", "/lib64"]
DONE, NO_ACCESS = Ending(), Ending(errno=errno.EACCES)

pytestmark = pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock")


def since(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(version > ABI, reason=f"Landlock ABI {version} is not offered here")


@dataclass(frozen=True)
class Place:
    """Three folders, each with a file and a program, and a ruleset that knows them."""

    execute: Path
    read: Path
    write: Path
    other: Path
    ruleset: Ruleset

    def confine(self) -> None:
        landlock.restrict(self.ruleset.fd)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folders = [tmp_path / name for name in ("execute", "read", "write", "other")]
    for folder in folders:
        (folder / "sub").mkdir(parents=True)
        (folder / "file").write_text(folder.name)
        shutil.copy("/bin/true", folder / "program")
    execute, read, write, other = folders
    with landlock.allow_list(
        execute=[*LIBRARIES, str(execute)], read=[str(read)], write=[str(write), "/dev/null"]
    ) as ruleset:
        yield Place(execute, read, write, other, ruleset)


def ends(act: Callable[[], object], confine: Callable[[], object]) -> tuple[Ending, Ending]:
    """How it ends without the ruleset, and with it; whatever it returns."""
    return end(act), end(act, confine)


def end(act: Callable[[], object], *confine: Callable[[], object]) -> Ending:
    """How it ends, whatever it returns."""

    def silent() -> None:
        act()

    return ending_of(silent, *confine)


# --- files ----------------------------------------------------------------------------------


def test_what_may_be_read_is_read_and_nothing_else(place: Place) -> None:
    for folder, answer in [
        (place.execute, DONE),
        (place.read, DONE),
        (place.write, DONE),
        (place.other, NO_ACCESS),
    ]:
        assert ends((folder / "file").read_bytes, place.confine) == (DONE, answer)
        assert ends(partial(next, folder.iterdir()), place.confine) == (DONE, answer)


def test_what_may_be_executed_is_executed_and_nothing_else(place: Place) -> None:
    for folder in (place.execute, place.read, place.write, place.other):
        answer = DONE if folder == place.execute else NO_ACCESS

        def act(program: Path = folder / "program") -> None:
            subprocess.run([program], check=True)

        assert ends(act, place.confine) == (DONE, answer)


def changes(folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "write": lambda: (folder / "file").open("r+").close(),
        "create": (folder / "new").touch,
        "remove": (folder / "file").unlink,
        "make folder": (folder / "newer").mkdir,
        "remove folder": (folder / "sub").rmdir,
        "link": lambda: (folder / "link").symlink_to("file"),
        "fifo": lambda: os.mkfifo(folder / "fifo"),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(folder / "socket")),
        "rename": lambda: (folder / "program").rename(folder / "renamed"),
    }


@pytest.mark.parametrize("change", sorted(changes(Path())))
def test_what_may_be_written_is_changed_and_nothing_else(place: Place, change: str) -> None:
    for folder in (place.execute, place.read, place.other):
        assert end(changes(folder)[change], place.confine) == NO_ACCESS
        assert end(changes(folder)[change]) == DONE
    assert end(changes(place.write)[change], place.confine) == DONE


@since(3)
def test_truncation_is_writing(place: Place) -> None:
    assert ending_of(lambda: os.truncate(place.read / "file", 0), place.confine) == NO_ACCESS
    assert ending_of(lambda: os.truncate(place.write / "file", 0), place.confine) == DONE
    assert ending_of(lambda: os.truncate(place.read / "file", 0)) == DONE


@since(2)
def test_files_move_within_what_may_be_written_and_not_out_of_it(place: Place) -> None:
    def move(target: Path) -> None:
        (place.write / "file").rename(target)

    assert end(partial(move, place.read / "stolen"), place.confine) == NO_ACCESS
    assert end(partial(move, place.write / "sub" / "moved"), place.confine) == DONE
    (place.write / "file").touch()
    assert end(partial(move, place.read / "stolen")) == DONE


@pytest.mark.skipif(not is_unconfined(), reason="only root makes devices")
def test_no_device_is_made_even_where_files_may_be(place: Place) -> None:
    null = os.makedev(1, 3)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        path = place.write / f"device {kind}"
        act = partial(os.mknod, path, kind, null)
        assert end(act, place.confine) == NO_ACCESS
        assert end(act) == DONE


@since(5)
def test_a_device_is_written_to_and_not_controlled(place: Place) -> None:
    def control() -> None:
        with Path("/dev/null").open("wb", buffering=0) as null:
            fcntl.ioctl(null, termios.TCGETS, bytes(64))

    def write() -> None:
        Path("/dev/null").write_bytes(b"x")

    assert ends(write, place.confine) == (DONE, DONE)
    assert ends(control, place.confine) == (Ending(errno=errno.ENOTTY), NO_ACCESS)


def test_a_rule_on_a_file_is_for_that_file(place: Place) -> None:
    with landlock.allow_list(read=[str(place.read / "file")]) as ruleset:

        def confine() -> None:
            landlock.restrict(ruleset.fd)

        assert ends((place.read / "file").read_bytes, confine) == (DONE, DONE)
        assert ends((place.read / "program").read_bytes, confine) == (DONE, NO_ACCESS)
        fd = os.open(place.read / "file", os.O_PATH)
        with pytest.raises(OSError, match="landlock_add_rule") as caught:  # why rights are masked
            ruleset._add(fd, landlock.READ_DIR)
        assert caught.value.errno == errno.EINVAL
        os.close(fd)


def test_paths_that_do_not_exist_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing = [str(tmp_path / "missing"), str(tmp_path / "file" / "below")]
    with landlock.allow_list(read=[str(tmp_path), *missing]) as ruleset:
        assert ruleset.skipped == missing
        assert not os.get_inheritable(ruleset.fd)


def test_a_path_that_cannot_be_looked_at_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="loop") as caught:
        landlock.allow_list(read=[str(tmp_path), str(tmp_path / "loop")])
    assert caught.value.errno == errno.ELOOP
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_second_ruleset_takes_and_never_gives(place: Place) -> None:
    def everything() -> None:
        with landlock.allow_list(execute=["/"], write=["/"]) as ruleset:
            landlock.restrict(ruleset.fd)

    assert ends((place.other / "file").read_bytes, everything) == (DONE, DONE)
    assert ending_of((place.other / "file").read_bytes, place.confine, everything) == NO_ACCESS


def test_what_it_starts_is_bound_as_well(place: Place) -> None:
    def act() -> int:
        return subprocess.call(["/bin/cat", place.other / "file"], stderr=subprocess.DEVNULL)

    assert (ending_of(act), ending_of(act, place.confine)) == (Ending(value=0), Ending(value=1))


# --- network, sockets, signals --------------------------------------------------------------


@since(4)
def test_tcp_is_out_of_reach(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def connect() -> None:
            # Not create_connection: it looks the name up, for which it loads a codec by path.
            with socket.socket() as caller:
                caller.connect(("127.0.0.1", port))

        def bind() -> None:
            socket.socket().bind(("127.0.0.1", 0))

        assert ends(connect, place.confine) == (DONE, NO_ACCESS)
        assert ends(bind, place.confine) == (DONE, NO_ACCESS)
        with landlock.scope_only() if ABI >= 6 else Ruleset(1, 0, 0) as ruleset:
            assert ends(connect, lambda: landlock.restrict(ruleset.fd)) == (DONE, DONE)


def both_kinds(place: Place) -> list[Callable[[], object]]:
    """The full ruleset, and the one of scopes only: the same must hold in both."""

    def scopes() -> None:
        with landlock.scope_only() as ruleset:
            landlock.restrict(ruleset.fd)

    return [place.confine, scopes]


@since(6)
def test_abstract_sockets_end_at_the_sandbox(place: Place) -> None:
    name = f"\0fumehood-test-{os.getpid()}"

    def connect(to: str) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(to)

    def own() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name + "-own")
            server.listen()
            connect(name + "-own")

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen(10)
        for confine in both_kinds(place):
            assert ends(lambda: connect(name), confine) == (DONE, Ending(errno=errno.EPERM))
            assert ends(own, confine) == (DONE, DONE)


@since(6)
def test_signals_end_at_the_sandbox(place: Place) -> None:
    parent = os.getpid()

    def own() -> None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL

    venv = [sys.prefix, sys.base_prefix, "/etc", "/dev"]
    with landlock.allow_list(execute=[*LIBRARIES, *venv]) as ruleset:
        for confine in (lambda: landlock.restrict(ruleset.fd), both_kinds(place)[1]):
            assert ends(lambda: os.kill(parent, 0), confine) == (DONE, Ending(errno=errno.EPERM))
            assert ends(own, confine) == (DONE, DONE)


@since(6)
def test_scopes_alone_leave_files_as_they_are(place: Place) -> None:
    scopes = both_kinds(place)[1]
    for change, act in changes(place.other).items():
        assert end(act, scopes) == DONE, change
    assert ends(lambda: subprocess.run([place.write / "program"], check=True), scopes) == (
        DONE,
        DONE,
    )


# --- what the kernel offers -----------------------------------------------------------------


def test_each_abi_offers_what_it_brought() -> None:
    assert landlock.offers(0) == ()
    assert landlock.offers(1) == ("files",)
    assert landlock.offers(3) == ("files", "rename between directories", "truncate")
    assert landlock.offers(7) == landlock.offers(6)
    assert landlock.offers(9) == (*landlock.offers(6), "path sockets")
    assert landlock.offers(99) == landlock.offers(9)


@pytest.mark.parametrize("version", range(1, ABI + 1))
def test_a_ruleset_for_an_older_kernel_denies_what_that_knows(
    version: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: version)
    with landlock.allow_list(read=[str(place.read)]) as ruleset:

        def confine() -> None:
            landlock.restrict(ruleset.fd)

        assert ending_of((place.read / "file").read_bytes, confine).value == b"read"
        assert ending_of((place.other / "file").read_bytes, confine) == NO_ACCESS
        cut = ending_of(lambda: os.truncate(place.read / "file", 4), confine)
        assert cut == (NO_ACCESS if version >= 3 else DONE)
        asked = ending_of(lambda: os.kill(os.getppid(), 0), confine)
        assert asked == (Ending(errno=errno.EPERM) if version >= 6 else DONE)


def test_a_kernel_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(OSError, match="ABI 0") as caught:
        landlock.allow_list(read=["/"])
    assert caught.value.errno == errno.ENOSYS
    monkeypatch.setattr(landlock, "abi", lambda: 5)
    with pytest.raises(OSError, match="ABI 5") as caught:
        landlock.scope_only()
    assert caught.value.errno == errno.EOPNOTSUPP


def test_restrict_names_what_failed() -> None:
    def act() -> str:
        try:
            landlock.restrict(-1)
        except OSError as exc:
            return str(exc)
        return ""

    message = ending_of(act).value
    assert "landlock_restrict_self" in message
    assert str(errno.EBADF) in message


def test_a_ruleset_is_closed_once() -> None:
    ruleset = landlock.allow_list(read=["/"])
    fd = ruleset.fd
    ruleset.close()
    ruleset.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
