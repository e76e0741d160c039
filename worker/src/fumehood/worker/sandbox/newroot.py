"""Putting together the root that an untrusted zygote and its sandboxes see.

A small tmpfs, read-only, into which what the ``layout`` shows is bound, read-only too. Besides: a
/proc of its own, five devices, and folders to write to. No /sys.
"""

from __future__ import annotations

import errno
import os
import stat

from fumehood.worker.sandbox import jobspace, mounts
from fumehood.worker.sandbox.confinement import HOME, SPACE, TMPDIR, Config
from fumehood.worker.sandbox.layout import Layout, is_within, real_path, stage

#: Where it is put together: the one folder that is always there, and that no code lies below.
_STAGE = "/proc"
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEV_LINKS = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}
#: One mount serves them all, which makes a sandbox 40 us cheaper than a bind for each of them.
_LINKS = {
    "/tmp": TMPDIR,  # noqa: S108
    "/var/tmp": TMPDIR,  # noqa: S108
    "/run/lock": TMPDIR,
    "/var/lock": TMPDIR,
    "/dev/shm": TMPDIR,  # noqa: S108
}
_PLAIN = mounts.NOSUID | mounts.NODEV
_CODE = _PLAIN | mounts.RDONLY
_DEVICE = mounts.NOSUID | mounts.RDONLY
_OPTIONS = b"size=32m,nr_inodes=16384,mode=0755"
_SCRATCH, _SCRATCH_INODES = 16 << 20, 4096  # bytes and files, while task modules are imported
_COPY_MAX = 4 << 20  # bytes of one file in /etc
_ENTRIES_MAX = 4000  # of one folder in /etc


class Builder:
    """Builds it in a mount namespace of this process's own. For one use."""

    def __init__(self, layout: Layout, config: Config) -> None:
        self.errors = dict(layout.left_out)
        self._layout = layout
        self._config = config
        self._at_once = "mount_setattr" not in config["disabled"]

    def build(self, uid: int, gid: int, accounts: dict[str, int]) -> None:
        """Build it and enter it; nothing of the old root can be reached afterwards.

        ``uid`` and ``gid`` own the folders that modules may write to while they are imported;
        ``accounts`` are what ``/etc/passwd`` and ``/etc/group`` name. Raises ``NamespaceError``.
        """
        os.umask(0o022)
        with stage("root"):
            mounts.make_private()
            mounts.mount(b"tmpfs", _STAGE.encode(), mounts.NOSUID, _OPTIONS)
        with stage("proc"):
            # hidepid=invisible, in the word that Linux before 5.8 knows too.
            target = self._folder("/proc").encode()
            mounts.mount(b"proc", target, _PLAIN | mounts.NOEXEC, b"hidepid=2")
        with stage("code"):
            self._show_trees()
            self._cover_secrets()
        with stage("dev"):
            self._make_devices()
        with stage("etc"):
            self._write_accounts(accounts)
        with stage("scratch"):
            self._make_scratch(uid, gid)
            self._make_cwd()
        with stage("pivot"):
            mounts.pivot(_STAGE)
            mounts.freeze_root()

    def _folder(self, path: str) -> str:
        staged = _STAGE + path
        os.makedirs(staged, 0o755, exist_ok=True)
        return staged

    def _file(self, path: str, data: bytes = b"") -> str:
        self._folder(os.path.dirname(path))
        with open(_STAGE + path, "wb") as file:
            file.write(data)
        return _STAGE + path

    def _bind(self, source: str, staged: str, flags: int) -> None:
        mounts.bind(source, staged)
        if self._at_once:
            try:
                mounts.restrict(staged, flags)
            except OSError as exc:
                if exc.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._at_once = False  # Linux before 5.12, or a filter that does not know the call
                self.errors["mount_setattr"] = str(exc)
        if not self._at_once:
            mounts.restrict_each(staged, flags, f"{_STAGE}/proc/self/mountinfo")

    # --- what is the host's -----------------------------------------------------------------

    def _show_trees(self) -> None:
        trees = self._layout.trees()
        for path in trees:
            if path.startswith("/etc/"):
                self._copy(path)
            elif os.path.isdir(path):
                self._bind(path, self._folder(path), _CODE)
            else:
                self._bind(path, self._file(path), _CODE)
        for path, target in self._layout.links.items():
            if not is_within(path, trees):
                self._folder(os.path.dirname(path))
                os.symlink(target, _STAGE + path)

    def _copy(self, path: str) -> None:
        """Copy a file or folder of /etc, for each mount less makes every sandbox 2 us cheaper."""
        if os.path.islink(path):
            os.symlink(os.readlink(path), _STAGE + path)
        elif os.path.isdir(path):
            self._folder(path)
            for name in os.listdir(path)[:_ENTRIES_MAX]:
                self._copy(f"{path}/{name}")
        else:
            state = os.stat(path)
            # Root may read what others may not: that stays where it is.
            if stat.S_ISREG(state.st_mode) and state.st_mode & 0o004 and state.st_size <= _COPY_MAX:
                with open(path, "rb") as file:
                    self._file(path, file.read())

    def _cover_secrets(self) -> None:
        for path in self._layout.secrets(self._config["hide"]):
            folder = os.path.isdir(path)
            empty = self._folder("/run/empty/d") if folder else self._file("/run/empty/f")
            self._bind(empty, _STAGE + path, _CODE)

    # --- what is not ------------------------------------------------------------------------

    def _make_devices(self) -> None:
        for name in _DEVICES:
            staged = self._file(f"/dev/{name}")
            try:
                self._make_device(name, staged)
            except OSError:  # not root, or a container that may not: a mount more for each
                self._bind(f"/dev/{name}", self._file(f"/dev/{name}"), _DEVICE)
        for name, rest in _DEV_LINKS.items():
            os.symlink(f"/proc/self/fd{rest}", f"{_STAGE}/dev/{name}")

    def _make_device(self, name: str, staged: str) -> None:
        os.unlink(staged)
        os.mknod(staged, stat.S_IFCHR | 0o666, os.stat(f"/dev/{name}").st_rdev)
        os.chmod(staged, 0o666)  # noqa: S103 - as everywhere
        with open(staged, "rb"):  # a device that cannot be opened is of no use
            pass

    def _write_accounts(self, accounts: dict[str, int]) -> None:
        users = [f"{name}:x:{uid}:{uid}::{HOME}:/bin/sh\n" for name, uid in accounts.items()]
        groups = [f"{name}:x:{gid}:\n" for name, gid in accounts.items()]
        self._file("/etc/passwd", "".join(users).encode())
        self._file("/etc/group", "".join(groups).encode())

    def _make_scratch(self, uid: int, gid: int) -> None:
        """For modules that write something when imported. In a sandbox its own lies above it."""
        target = os.fsencode(self._folder(SPACE))
        options = jobspace.options(_SCRATCH, _SCRATCH_INODES, uid)
        mounts.mount(b"tmpfs", target, _PLAIN, options)
        for path in (TMPDIR, HOME):
            os.mkdir(_STAGE + path)
            os.chown(_STAGE + path, uid, gid)
        for path, target_path in _LINKS.items():
            self._folder(os.path.dirname(path))
            if os.path.lexists(_STAGE + path):
                self.errors[path] = "code lies below it, so that nothing can be written there"
            else:
                os.symlink(target_path, _STAGE + path)

    def _make_cwd(self) -> None:
        """A folder of the node's name to be in, empty where its own is not shown."""
        path = real_path(self._config["cwd"], {})
        if not os.path.lexists(_STAGE + path):
            self._folder(path)
