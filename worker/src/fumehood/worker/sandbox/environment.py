"""The environment of zygotes and sandboxes: an allow-list, for a secret kept out cannot leak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

#: What an interpreter and ordinary libraries need. Never FUMEHOOD_*: a password is in it.
ALLOWED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TERM",
    "PYTHON*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "*_NUM_THREADS",
)  # fmt: skip

#: Has the loader resolve every C function at once: resolved lazily, a function would be looked up
#: anew in each sandbox that is the first to call it. The zygote takes it out of its environment.
BIND_NOW = "LD_BIND_NOW"

# Pools of threads started at import do not survive a fork, and 32 threads in each of 32 sandboxes
# serve nobody.
_ONE_THREAD = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS",
)  # fmt: skip


def allowed(environ: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """The variables of ``environ`` that a zygote gets; ``extra`` are more names, with ``*``."""
    patterns = (*ALLOWED, *extra)
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("FUMEHOOD_")
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    return dict.fromkeys(_ONE_THREAD, "1") | kept | {BIND_NOW: "1"}
