"""The environment of zygotes and sandboxes: an allow-list, for a secret kept out cannot leak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from fumehood.common.task import Profile
from fumehood.worker.sandbox.confinement import HOME, TMPDIR
from fumehood.worker.sandbox.protocol import BIND_NOW

#: What an interpreter and ordinary libraries need. Never FUMEHOOD_*: a password is in it.
ALLOWED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TERM",
    "PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "*_NUM_THREADS",
)  # fmt: skip

#: For code that may attack: nothing of the user that the node runs as.
ALLOWED_UNTRUSTED = (
    "PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "*_NUM_THREADS",
)  # fmt: skip

# Pools of threads started at import do not survive a fork, and 32 threads in each of 32 sandboxes
# serve nobody.
_ONE_THREAD = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS",
)  # fmt: skip


def allowed(
    environ: Mapping[str, str], extra: Iterable[str] = (), profile: Profile = "trusted"
) -> dict[str, str]:
    """The variables of ``environ`` that a zygote gets; ``extra`` are more names, with ``*``."""
    patterns = (*(ALLOWED if profile == "trusted" else ALLOWED_UNTRUSTED), *extra)
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("FUMEHOOD_")
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    own = {} if profile == "trusted" else {"HOME": HOME, "TMPDIR": TMPDIR}
    return dict.fromkeys(_ONE_THREAD, "1") | kept | own | {BIND_NOW: "1"}
