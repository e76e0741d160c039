"""The namespaces of an untrusted zygote and its jobs, each denial beside what is allowed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import namespace_probes as here
from support.namespace_zygote import (
    NOBODY,
    SLOTS,
    TESTS,
    UIDS,
    ProbeError,
    StandIn,
    make_config,
    wait_ended,
)
from support.sandboxes import is_alive, wait_for

from fumehood.worker.sandbox import boot, hostpid, layout, protocol, slotuid
from fumehood.worker.sandbox.confinement import HOME, SPACE, TMPDIR, NamespaceError

ROOT, PLAIN, USER = "root", "plain", "user"
_WAYS: dict[str, tuple[tuple[str, ...], int]] = {
    ROOT: ((), 0),
    PLAIN: (("userns",), 0),
    USER: ((), NOBODY),
}


def _can_make_namespaces() -> bool:
    flags = ["--mount", "--pid", "--net", "--fork"]
    return not subprocess.run(
        ["unshare", *flags, "true"], capture_output=True, check=False
    ).returncode


pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="root is needed, to be others too"),
    pytest.mark.skipif(
        shutil.which("unshare") is None or not _can_make_namespaces(),
        reason="this kernel, or what this runs in, lets nobody make namespaces",
    ),
]


@pytest.fixture(scope="module", params=_WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def inside(way: str, host: Host) -> Iterator[StandIn]:
    disabled, uid = _WAYS[way]
    app = str(host.app)
    config = make_config(disabled, show=[str(host.shown)], hide=[f"{app}/token"], cwd=app)
    with StandIn(config, uid) as stand_in:
        yield stand_in


class Host:
    """What there is on the host, some of it to be seen."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret"
        self.secret.write_text("of the host")
        # Anyone may write to them: only the mounts are in the way.
        self.app, self.shown = folder / "app", folder / "shown"
        for path in (self.app, self.shown, self.shown / "below"):
            path.mkdir()
            path.chmod(0o777)
        for name in ("code.py", ".env", ".env.local", "fumehood.toml", "token"):
            (self.app / name).write_text("text")
        (self.app / ".git").mkdir()
        (self.app / ".git" / "config").write_text("text")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    # Not where pytest has its own, which is for root only.
    folder = Path(tempfile.mkdtemp(prefix="fumehood-host-", dir="/opt"))
    folder.chmod(0o755)
    try:
        yield Host(folder)
    finally:
        shutil.rmtree(folder)


def denied(stand_in: Any, probe: str, *args: Any) -> str:
    """The errno with which a probe fails."""
    with pytest.raises(ProbeError) as caught:
        stand_in.call(probe, *args)
    return errno.errorcode.get(caught.value.errno or 0, str(caught.value))


# --- what was achieved ----------------------------------------------------------------------


def test_the_report(inside: StandIn, way: str) -> None:
    report = inside.report
    for name in ("pid", "net", "mount", "ipc", "uts"):
        assert report[name] is True, name
    assert report["user"] is (way != PLAIN)
    assert report["slots"] == (0 if way == USER else SLOTS)
    assert report["errors"].get("user") == ("disabled" if way == PLAIN else None)
    assert inside.call("variable", "FUMEHOOD_CONFINEMENT") is None


def test_namespaces_are_its_own(inside: StandIn, way: str) -> None:
    theirs, ours = inside.call("namespaces"), here.namespaces()
    same = {name for name in ours if ours[name] == theirs[name]}
    expected = {"time", "time_for_children"} | ({"user"} if way == PLAIN else set())
    assert same - {"cgroup"} == expected & set(ours)
    with inside.job() as job:
        inner = here.namespaces(job.host_pid)  # it may not look itself
        apart = {name for name in inner if inner[name] != theirs[name]}
        assert apart == {"mnt", "ipc"}


# --- files ----------------------------------------------------------------------------------


def test_host_files_are_not_there(inside: StandIn, host: Host) -> None:
    hidden = [str(host.secret), "/etc/shadow", "/etc/ssh", "/sys/kernel", "/dev/kmsg", "/boot"]
    assert here.exists(hidden[0])
    assert here.exists("/etc/shadow")
    with inside.job() as job:
        for path in hidden:
            assert not job.call("exists", path), path
            assert not inside.call("exists", path), path
            assert not job.call("exists", f"/proc/1/root{path}"), path
        assert job.call("read", str(host.app / "code.py")) == "text"  # the positive control
        assert "root:x:0" in job.call("read", "/etc/passwd")
    assert inside.call("mountpoints").count("/") == 1  # the old root is gone, not just covered
    config = make_config()
    code = [*config["path"], config["cwd"], sys.prefix, sys.base_prefix, str(host.app)]
    system = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin"}
    allowed = {*system, "tmp", "usr", "var", *(Path(path).parts[1] for path in code)}
    assert set(inside.call("listing", "/")) <= allowed


def test_what_is_on_the_way_to_code_shows_nothing_else() -> None:
    """Such as /root, where the interpreter may lie."""
    config = make_config()
    code = {*config["path"], config["cwd"], sys.prefix, sys.base_prefix, "/usr"}
    shown = {str(Path(path).resolve()) for path in code if Path(path).exists()}
    less = False
    with StandIn(config) as inside:
        for folder in {parent for path in shown for parent in list(Path(path).parents)[:-1]}:
            if layout.is_within(str(folder), shown):
                continue
            below = [Path(path).parts for path in shown if layout.is_within(path, (str(folder),))]
            there = inside.call("listing", str(folder))
            assert set(there) == {parts[len(folder.parts)] for parts in below}, folder
            less |= set(there) < set(here.listing(str(folder)))
    assert less, "nothing had to be left out, so that nothing was tested"


def test_code_cannot_be_written(inside: StandIn, host: Host) -> None:
    folders = [str(host.app), str(host.shown), str(host.shown / "below")]
    for folder in folders:
        (Path(folder) / "control").write_text("on the host it can")
    with inside.job() as job:
        for folder in folders:
            assert denied(job, "write", f"{folder}/new") == "EROFS"
            assert denied(job, "write", f"{folder}/control") in {"EROFS", "EACCES"}
            assert denied(job, "remove", f"{folder}/control") == "EROFS"
            assert denied(inside, "write", f"{folder}/new") == "EROFS"
        for folder in ("/", "/etc", "/usr", "/run", sys.prefix, TESTS):
            assert denied(job, "write", f"{folder}/new") in {"EROFS", "EACCES"}
            assert denied(inside, "write", f"{folder}/new") == "EROFS"
        assert job.call("write", "new") == "x"


def test_mounts_below_are_read_only_too(host: Host) -> None:
    """A folder with another file system in it: read-only has to reach into that one."""
    below = str(host.shown / "below")
    for disabled in ((), ("mount_setattr",)):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0777", "none", below], check=True)
        try:
            (host.shown / "below" / "control").write_text("on the host it can")
            with StandIn(make_config(disabled, show=[str(host.shown)])) as inside:
                assert inside.call("read", f"{below}/control") == "on the host it can"
                assert denied(inside, "write", f"{below}/new") == "EROFS"
                with inside.job() as job:
                    assert denied(job, "write", f"{below}/new") == "EROFS"
                    assert denied(job, "write", f"{host.shown}/new") == "EROFS"
        finally:
            subprocess.run(["umount", below], check=True)


def test_mounts_are_locked(inside: StandIn, way: str, host: Host) -> None:
    app = str(host.app)
    with inside.job() as job:
        assert denied(job, "unmount", SPACE) == "EPERM"
        assert denied(job, "unmount", app) == "EPERM"
        assert denied(job, "remount", app) == "EPERM"
    if way == ROOT:  # it has all rights over its own namespaces, but not over what was inherited
        assert denied(inside, "unmount", app) == "EINVAL"
        assert denied(inside, "remount", app) == "EPERM"
        assert denied(inside, "write", f"{app}/new") == "EROFS"


def test_secrets_beside_the_code_are_covered(inside: StandIn, host: Host) -> None:
    with inside.job() as job:
        for name in (".env", ".env.local", "fumehood.toml", "token"):
            assert (host.app / name).read_text() == "text"
            assert job.call("read", str(host.app / name)) == ""
            assert inside.call("read", str(host.app / name)) == ""
        assert job.call("listing", str(host.app / ".git")) == []


def test_devices(inside: StandIn) -> None:
    with inside.job() as job:
        seen = job.call("devices")
    assert set(seen["names"]) == {
        *("null", "zero", "full", "random", "urandom"),
        *("fd", "stdin", "stdout", "stderr", "shm"),
    }
    assert (seen["null"], seen["zero"], seen["random"]) == (b"", bytes(4), 8)


# --- what a job may write -------------------------------------------------------------------


#: Where code is shown that lies below /tmp, that folder is the host's, read-only, with it alone.
_TMP_IS_OWN = not Path(__file__).resolve().is_relative_to("/tmp")
_OF_JOBS = ["/var/tmp", "/dev/shm", "/run/lock", TMPDIR, HOME] + ["/tmp"] * _TMP_IS_OWN


@pytest.mark.parametrize("folder", _OF_JOBS)
def test_files_end_with_their_job(inside: StandIn, folder: str) -> None:
    path = f"{folder}/left"
    with inside.job(1) as one, inside.job(2) as two:
        assert one.call("write", path) == "x"
        assert one.call("exists", path)
        assert not two.call("exists", path)
        assert not inside.call("exists", path)
        assert one.call("stat", folder)[2] != two.call("stat", folder)[2]
    with inside.job(1) as again:
        assert not again.call("exists", path)
        assert again.call("listing", folder) == []
    assert not Path(path).exists()


def test_the_library_finds_its_places(inside: StandIn) -> None:
    with inside.job() as job:
        assert job.call("temporary")["content"] == "kept"
        assert job.call("posix_shm") == b"text"
        assert job.call("ids")["cwd"] == HOME


def test_the_size_of_files_is_bounded(inside: StandIn) -> None:
    with inside.job(tmp=64 << 10) as job:
        assert job.call("fill", f"{TMPDIR}/one", 32 << 10) == 32 << 10
        assert job.call("fill", "/dev/shm/two", 1 << 20) == 32 << 10  # of all places together
    with inside.job(tmp=2 << 20) as job:
        assert job.call("fill", f"{TMPDIR}/one", 1 << 20) == 1 << 20
    with inside.job(tmp=0) as job:  # not "without a bound", which 0 is for the kernel
        assert job.call("fill", "one", 1 << 20) == 4096


def test_the_number_of_files_is_bounded(inside: StandIn) -> None:
    with inside.job(inodes=10) as job:
        assert job.call("make_files", TMPDIR, 100) == 10
        assert denied(job, "write", "one-more") == "ENOSPC"
    with inside.job(inodes=200) as job:
        assert job.call("make_files", HOME, 100) == 100
    with inside.job(inodes=0) as job:
        assert job.call("make_files", TMPDIR, 100) == 0


def test_modules_may_write_while_they_are_imported(inside: StandIn) -> None:
    assert inside.call("temporary")["content"] == "kept"
    assert inside.call("posix_shm") == b"text"


# --- who a job is ---------------------------------------------------------------------------


def test_a_slot_has_its_own_id(inside: StandIn, way: str) -> None:
    expected = {ROOT: 2, PLAIN: UIDS + 2, USER: NOBODY}[way]
    on_host = {ROOT: UIDS + 2, PLAIN: UIDS + 2, USER: NOBODY}[way]
    with inside.job(2) as job:
        seen = job.call("ids")
        assert (seen["uid"], seen["gid"]) == ((expected,) * 3, (expected,) * 3)
        assert (seen["groups"], seen["effective"]) == ([], 0)
        status = here.status_of(job.host_pid)
        assert status["Uid"].split() == [str(on_host)] * 4
        assert status["Gid"].split() == [str(on_host)] * 4
        assert status["Groups"].split() == []
        assert job.call("account") in {"slot2", "sandbox", "nobody"}
    if way == USER:
        return
    for slot in (SLOTS + 1, 0, -1):
        with pytest.raises(ProbeError, match="slot"):
            inside.job(slot)


def test_other_processes_are_out_of_sight(inside: StandIn, way: str) -> None:
    with inside.job(3) as one, inside.job(4) as two:  # slots that nothing was left in
        assert {1, one.pid, two.pid} <= set(inside.call("processes"))  # the control
        assert inside.call("read", "/proc/1/environ")
        own = one.call("processes")
        assert one.pid in own
        for path in ("environ", "mem", "maps", "cmdline", "status", "fd"):
            assert not one.call("exists", f"/proc/1/{path}"), path
        assert denied(one, "read", "/proc/1/environ") in {"ENOENT", "EACCES"}
        assert denied(one, "read_memory", 1) in {"ENOENT", "EACCES"}
        if way == USER:  # they are one user: keeping those apart is for Landlock
            return
        assert own == [one.pid]
        assert not one.call("exists", f"/proc/{two.pid}/status")
        assert denied(one, "signal_process", two.pid) == "EPERM"
        assert denied(one, "signal_process", 1) == "EPERM"
        assert two.call("processes") == [two.pid]


def test_process_ids_are_its_own(inside: StandIn) -> None:
    with inside.job() as job:
        assert here.status_of(job.host_pid)["NSpid"].split()[1:] == [str(job.pid)]
        assert str(job.pid) != str(job.host_pid)
        assert denied(job, "signal_process", os.getpid()) in {"ESRCH", "EPERM"}
        assert not job.call("exists", f"/proc/{os.getpid()}/status") or job.pid == os.getpid()


def test_names_of_the_host_are_hidden(inside: StandIn) -> None:
    name, domain = inside.call("host_names")
    assert (name, domain) == ("sandbox", "(none)")
    assert socket.gethostname() != name


# --- network --------------------------------------------------------------------------------


def test_there_is_no_network(inside: StandIn, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert here.connect("127.0.0.1", port) == "connected"
        with inside.job() as job:
            for peer in (job, inside):
                assert peer.call("interfaces").get("lo") == "down"
                assert set(peer.call("interfaces").values()) == {"down"}
                assert peer.call("connect", "127.0.0.1", port) == "ENETUNREACH"
                assert peer.call("connect", "169.254.169.254", 80) == "ENETUNREACH"
                assert peer.call("connect", "192.0.2.1", 53, "udp") == "ENETUNREACH"
            assert denied(job, "raise_loopback") == "EPERM"
    if way == ROOT:  # not even by who is root in there: the network is the host's
        assert denied(inside, "raise_loopback") == "EPERM"


def test_unix_sockets_of_the_host_are_not_there(inside: StandIn, host: Host) -> None:
    abstract, path = f"\0fumehood-test-{os.getpid()}", str(host.secret.with_name("socket"))
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for server, name in ((one, abstract), (two, path)):
            server.bind(name)
            server.listen()
            assert here.connect_unix(name) == "connected"
        Path(path).chmod(0o777)
        with inside.job() as job:
            assert job.call("connect_unix", abstract) == "ECONNREFUSED"
            assert job.call("connect_unix", path) == "ENOENT"
    Path(path).unlink()


# --- System V IPC ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["shm", "sem", "msg"])
def test_ipc_ends_with_its_job(inside: StandIn, kind: str) -> None:
    key = 0x46484400 + os.getpid() % 1000
    with inside.job(1) as one, inside.job(1) as two:
        one.call("make_sysv", kind, key)
        one.call("find_sysv", kind, key)
        assert denied(two, "find_sysv", kind, key) == "ENOENT"
        assert denied(inside, "find_sysv", kind, key) == "ENOENT"
    with inside.job(1) as again:
        assert denied(again, "find_sysv", kind, key) == "ENOENT"


def test_posix_queues_end_with_their_job(inside: StandIn) -> None:
    with inside.job(1) as one, inside.job(1) as two:
        one.call("open_queue", "/fumehood", True)
        one.call("open_queue", "/fumehood", False)
        assert denied(two, "open_queue", "/fumehood", False) == "ENOENT"
    with inside.job(1) as again:
        assert denied(again, "open_queue", "/fumehood", False) == "ENOENT"


# --- ends -----------------------------------------------------------------------------------


@pytest.fixture
def family(way: str) -> Iterator[tuple[StandIn, int, int]]:
    """A stand-in with a job in it; pidfds of the first process in there and of the job."""
    disabled, uid = _WAYS[way]
    with StandIn(make_config(disabled), uid) as stand_in:
        job = stand_in.job()
        inner = os.pidfd_open(int(here.status_of(job.host_pid)["PPid"]))
        try:
            yield stand_in, inner, job.pidfd
        finally:
            job.channel.close()
            os.close(inner)
            os.close(job.pidfd)


def test_all_die_with_the_outer_process(family: tuple[StandIn, int, int]) -> None:
    stand_in, inner, job = family
    stand_in.process.kill()
    wait_ended(inner)
    wait_ended(job)


def test_all_die_with_the_inner_process(family: tuple[StandIn, int, int]) -> None:
    stand_in, inner, job = family
    signal.pidfd_send_signal(inner, signal.SIGKILL)
    wait_ended(job)
    assert stand_in.process.wait(20) == 128 + signal.SIGKILL


def test_all_die_with_the_manager(family: tuple[StandIn, int, int]) -> None:
    stand_in, inner, job = family
    stand_in.channel.close()
    wait_ended(inner)
    wait_ended(job)
    assert stand_in.process.wait(20) == 0


@pytest.mark.slow
def test_a_zygote_that_hangs_dies_with_the_manager() -> None:
    with StandIn(make_config()) as inside, inside.job() as job:
        inner = os.pidfd_open(int(here.status_of(job.host_pid)["PPid"]))
        inside.tell("hang")
        wait_for(lambda: here.is_hanging(hostpid.host_pid(inner)), "hanging")
        inside.channel.close()
        wait_ended(inner)
        wait_ended(job.pidfd)
        os.close(inner)
        assert inside.process.wait(20) == 128 + signal.SIGKILL


def test_nothing_is_left_of_one_that_could_not_be_made() -> None:
    stand_in = StandIn(make_config(uids=0))
    with pytest.raises(NamespaceError) as caught, stand_in:
        pass
    assert (caught.value.stage, caught.value.errno) == ("uids", errno.EINVAL)
    assert stand_in.process.returncode == 1
    assert not is_alive(stand_in.process.pid)


# --- where it cannot be had -----------------------------------------------------------------


def test_root_does_without_a_user_namespace_that_is_refused() -> None:
    """As root of a container that may not make any."""
    with StandIn(make_config(), refused="user") as inside:
        assert inside.report["user"] is False
        assert "ENOSPC" in inside.report["errors"]["user"]
        assert inside.report["first"] == UIDS
        with inside.job(3) as job:
            assert job.call("ids")["uid"] == (UIDS + 3,) * 3
            assert job.call("devices")["null"] == b""  # which could not be made, only bound
            assert not job.call("exists", "/etc/shadow")


@pytest.mark.parametrize(
    ("uid", "refused", "stage"),
    [
        (NOBODY, "user", "user"),
        (NOBODY, "pid", "pid"),
        (0, "pid", "pid"),
        (0, "mnt", "mount"),
        (0, "net", "net"),
        (0, "ipc", "ipc"),
        (NOBODY, "net", "net"),
    ],
)
def test_a_refusal_names_its_stage(uid: int, refused: str, stage: str) -> None:
    with (
        pytest.raises(NamespaceError) as caught,
        StandIn(make_config(), uid, refused),
    ):
        pass
    assert (caught.value.stage, caught.value.errno) == (stage, errno.ENOSPC)
    assert f"stage {stage}: ENOSPC" in str(caught.value)


def test_names_of_the_host_are_not_worth_a_refusal() -> None:
    with StandIn(make_config(), refused="uts") as inside:
        assert inside.report["uts"] is False
        assert "ENOSPC" in inside.report["errors"]["uts"]


def test_a_refusal_for_a_job_names_its_stage() -> None:
    with StandIn(make_config()) as inside:
        inside.job().__exit__()
        inside.call("write", "/proc/sys/user/max_ipc_namespaces", "0")
        with pytest.raises(ProbeError, match="job-namespaces") as caught:
            inside.job()
        assert caught.value.errno == errno.ENOSPC


def test_an_ordinary_user_without_user_namespaces_has_nothing() -> None:
    with StandIn(make_config(("userns",)), NOBODY) as inside:
        made = {k: v for k, v in inside.report.items() if v is True}
        assert made == {}
        assert inside.report["errors"] == {"user": "disabled"}
        assert inside.call("namespaces")["net"] == here.namespaces()["net"]
        with inside.job() as job:
            assert job.call("ids")["uid"] == (NOBODY,) * 3


def test_the_interpreter_must_be_open_to_others(tmp_path: Path) -> None:
    """As root, code may lie where only root can go, but not be readable for root only."""
    program = tmp_path / "python"
    shutil.copy(os.path.realpath(sys.executable), program)
    program.chmod(0o700)
    code = f"import sys; sys.executable = {str(program)!r}; from support import namespace_zygote"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.namespace_zygote._START", f"{code} as z; start = z.start; ")
        with pytest.raises(NamespaceError) as caught, StandIn(make_config()):
            pass
    assert (caught.value.stage, caught.value.errno) == ("exec", errno.EACCES)


# --- the parts ------------------------------------------------------------------------------


def test_a_failure_comes_back_as_it_was() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        sent = NamespaceError("mount", errno.EPERM, "unshare 0x20000: not permitted")
        boot._report_failure(theirs.fileno(), sent)
        got = boot.failure_of(protocol.unpack_control(ours.recv(4096))[1:])
    assert got is not None
    assert (got.stage, got.errno, str(got)) == (sent.stage, sent.errno, str(sent))
    assert boot.failure_of(["app.tasks", "ImportError: no", "trace"]) is None


@pytest.mark.parametrize("path", ["/", "/home", "/etc", "/var", "/tmp", "~", "~/..", "/proc/self"])
def test_folders_that_are_never_shown_as_code(path: str) -> None:
    shown = layout.Layout()
    shown.show_code(str(Path(path).expanduser()))
    assert shown.trees() == []
    assert shown.left_out


def test_folders_that_are_shown_as_code(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    shown = layout.Layout()
    shown.show_code(str(tmp_path / "link" / "inner"))
    shown.show_code(str(tmp_path / "missing"))
    shown.show_code(str(tmp_path / "real"))
    assert shown.trees() == [str(tmp_path / "real")]
    assert shown.links == {str(tmp_path / "link"): str(tmp_path / "real")}
    assert shown.left_out == {}


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        layout.real_path(str(tmp_path / "one"), {})
    assert layout.real_path("/usr/../usr/./bin/..", {}) == "/usr"
    assert layout.real_path("/", {}) == "/"


def test_blocks_of_ids_are_not_shared() -> None:
    one, two = slotuid.claim(4), slotuid.claim(4)
    try:
        assert abs(one.base - two.base) >= slotuid.BLOCK
    finally:
        one.close()
        two.close()
    again = slotuid.claim(4)
    again.close()
    assert again.base <= one.base  # given up, it can be had again
    with pytest.raises(NamespaceError, match="slots"):
        slotuid.claim(slotuid.BLOCK)
    assert not slotuid.is_mapped(1 << 32, 1)


def test_ids_of_processes() -> None:
    process = multiprocessing.get_context("spawn").Process(target=here.nothing)
    process.start()
    assert process.pid is not None
    pidfd = os.pidfd_open(process.pid)
    try:
        assert hostpid.host_pid(pidfd) == process.pid
        assert hostpid._by_fdinfo(pidfd) == process.pid
        process.join()
        for ask in (hostpid.host_pid, hostpid._by_fdinfo):
            with pytest.raises(ProcessLookupError):
                ask(pidfd)
    finally:
        os.close(pidfd)
