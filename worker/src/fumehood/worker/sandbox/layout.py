"""What of the host is shown to an untrusted zygote and its sandboxes: code, and little else.

The system's folders of programs and libraries, the interpreter, a few files of /etc; and the import
path and the working folder by this rule: a path is left out if it is a home folder, or contains
one, or is one of the folders that hold a host's data (``_DATA``). An application that lies directly
in a home folder, ``/root`` or ``/home/app``, is therefore not found: move it into a folder below,
or name it in ``Config.show``. At the top of what is shown by this rule, files and folders that
usually hold secrets (``_SECRETS``) are covered by empty ones.
"""

from __future__ import annotations

import errno
import os
import pwd
import sys

from fumehood.worker.sandbox.confinement import Config, NamespaceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
#: Never the whole folder: it has host keys, password hashes and whatever services keep there.
_ETC = (
    "alternatives", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types",
    "nsswitch.conf", "os-release", "pki/ca-trust/extracted", "pki/tls/certs", "protocols",
    "services", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_DATA = (
    "/", "/boot", "/etc", "/home", "/lost+found", "/media", "/mnt", "/root", "/run", "/srv", "/var",
    "/var/lib", "/var/run", "/tmp", "/var/tmp",  # noqa: S108 - they are not written to
)  # fmt: skip
_NEVER = ("/dev", "/proc", "/sys")  # nor anything below
_SECRETS = {
    "fumehood.toml", ".env", ".git", ".netrc", ".pgpass", ".pypirc", ".ssh", ".aws", ".kube",
}  # fmt: skip
_HOPS_MAX = 40  # links in one path, as in the kernel


class stage:  # noqa: N801 - used as a word: with stage("mount")
    """Name the stage in what goes wrong: any ``OSError`` becomes a ``NamespaceError``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if isinstance(exc, OSError) and not isinstance(exc, NamespaceError):
            detail = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
            raise NamespaceError(self._name, exc.errno or errno.EINVAL, detail or str(exc)) from exc


class Layout:
    """Which of the host's files and folders are shown, and why others are not."""

    def __init__(self) -> None:
        self.links: dict[str, str] = {}  # links on the way to what is shown -> their targets
        self.left_out: dict[str, str] = {}  # path -> why
        self._shown: set[str] = set()  # real paths
        self._code: set[str] = set()  # those among them that are shown by the rule
        homes = {os.path.realpath(entry.pw_dir) for entry in pwd.getpwall()}
        self._homes = {os.path.realpath(os.path.expanduser("~")), *homes}

    def show(self, path: str) -> None:
        """Show a file or folder, whatever it is; what is not there is passed over."""
        real = real_path(path, self.links)
        if real == "/" or is_within(real, _NEVER):
            self.left_out[path] = "the whole host, or its devices, are never shown"
        elif os.path.exists(real):
            self._shown.add(real)

    def show_code(self, path: str) -> None:
        """Show an entry of the import path by the rule of this module."""
        real = real_path(path, {})
        private = real in _DATA or any(is_within(home, (real,)) for home in self._homes)
        if private and not is_within(real, _SYSTEM):
            self.left_out[path] = "it is a home folder, contains one, or holds a host's data"
        else:
            self._code.add(real)
            self.show(path)

    def trees(self) -> list[str]:
        """Real paths to bind: those that no other one contains."""
        return sorted(path for path in self._shown if not is_within(path, self._shown - {path}))

    def secrets(self, hide: Iterable[str]) -> list[str]:
        """Real paths to cover: those of ``hide`` and the usual ones, where they are shown."""
        found = {path for path in hide if os.path.lexists(path)}
        for folder in self._code.difference(_SYSTEM):
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            found.update(f"{folder}/{name}" for name in names if is_secret(name))
        # A mount on a link would cover what it leads to, and so has to be meant for that.
        real = {real_path(path, {}) for path in found}
        return sorted(path for path in real if is_within(path, self._shown))


def is_secret(name: str) -> bool:
    """Whether a file or folder of that name usually holds secrets."""
    return name in _SECRETS or name.startswith(".env.")


def is_within(path: str, folders: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``folders`` or lies below one."""
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in folders)


def real_path(path: str, links: dict[str, str]) -> str:
    """``path`` without symbolic links; each that was on its way is added to ``links``.

    Raises ``OSError`` for links that lead nowhere but to each other.
    """
    left = path.split("/")[::-1]
    here, hops = "", 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        step = f"{here}/{part}"
        try:
            target = os.readlink(step)
        except OSError:  # no link, or not there
            here = step
            continue
        hops += 1
        if hops > _HOPS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        links[step] = target
        left += target.split("/")[::-1]
        here = "" if target.startswith("/") else here
    return here or "/"


def plan(config: Config) -> Layout:
    """What the new root shows of the host. Raises ``NamespaceError``."""
    layout = Layout()
    with stage("code"):
        for path in (*_SYSTEM, *(f"/etc/{name}" for name in _ETC), *config["show"]):
            layout.show(path)
        for path in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.executable):
            layout.show(path)
        libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        for path in (*config["path"], config["cwd"], *libraries):
            if path.startswith("/"):
                layout.show_code(path)
    return layout
