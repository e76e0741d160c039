"""What is known of libraries that leave something behind when they are imported or set up.

Loaded only when something was found. The names of threads were seen with opentelemetry-sdk 1.45,
grpcio 1.85, sentry-sdk 2.75, numpy 2.4 and the standard library of Python 3.11.
"""

from __future__ import annotations

from fumehood.common.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


SHARED = "/dev/shm/"  # noqa: S108 - where the C library keeps shared memory, and nothing is made
SEMAPHORE = SHARED + "sem."  # what follows in /proc/self/maps is a passing name, not its own


class Library(Value):
    """A library, how to recognise what it left, why it is there, and what to do about it.

    ``modules`` are prefixes of module names, ``threads`` of the names of threads, ``commands``
    parts of the command lines of processes, ``files`` parts of the names of shared libraries.
    """

    __slots__ = ("commands", "files", "modules", "remedy", "threads", "why")

    why: str
    remedy: str
    modules: tuple[str, ...]
    threads: tuple[str, ...]
    commands: tuple[str, ...]
    files: tuple[str, ...]

    def __init__(
        self,
        why: str,
        remedy: str,
        *,
        modules: tuple[str, ...] = (),
        threads: tuple[str, ...] = (),
        commands: tuple[str, ...] = (),
        files: tuple[str, ...] = (),
    ) -> None:
        self._set(
            why=why, remedy=remedy, modules=modules, threads=threads, commands=commands, files=files
        )


EVENT_LOOP = Library(
    "an event loop was made at import, and its descriptors are closed in every sandbox",
    "make it inside the task; an async task is given one",
    modules=("asyncio", "uvloop"),
)
MULTIPROCESSING = Library(
    "a lock, queue, pool or shared memory of multiprocessing was made at import, and jobs would "
    "share it",
    "make it inside the task",
    modules=("multiprocessing",),
    threads=("QueueFeederThread", "QueueManagerThread"),
    commands=("multiprocessing.resource_tracker", "multiprocessing.forkserver"),
)
THREADS_OF_C = Library(
    "C code keeps a pool of threads, which is in no sandbox",
    "leave the variables OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and MKL_NUM_THREADS at 1",
    modules=("numpy", "scipy", "mkl", "sklearn", "numexpr", "numba"),
    files=("openblas", "libmkl_", "libgomp", "libiomp", "libomp.", "libomp-", "libtbb"),
)
LIBRARIES = (
    Library(
        "OpenTelemetry sends from a thread, which is in no sandbox",
        "configure the exporter in the node, not in a task module",
        modules=("opentelemetry",),
        threads=("Otel",),
    ),
    Library(
        "gRPC does not support fork, and its calls in a sandbox would wait for threads that are "
        "not there",
        "make channels and servers inside the task",
        modules=("grpc",),
        threads=(
            "grpc", "event_engine", "lifeguard", "default-executo", "resolver-executo",
        ),
    ),
    Library(
        "Sentry sends from a thread, which is in no sandbox",
        "call sentry_sdk.init inside the task, or report failures from the node",
        modules=("sentry_sdk",),
        threads=("sentry",),
    ),
    Library(
        "a pool has threads or processes that are in no sandbox, and what is submitted to it "
        "there waits for ever",
        "make the pool inside the task",
        modules=("concurrent.futures",),
        threads=("ThreadPoolExecutor-", "ExecutorManagerThread"),
    ),
    Library(
        "a QueueListener passes log records on from a thread, which is in no sandbox, and "
        "records would be lost",
        "log with plain handlers; a sandbox's stderr is kept with its outcome",
        modules=("logging.handlers",),
    ),
    Library(
        "PyMongo watches its servers from threads, which are in no sandbox",
        "make the MongoClient inside the task",
        modules=("pymongo",),
        threads=("pymongo_",),
    ),
    Library(
        "APScheduler runs its jobs from a thread, which is in no sandbox",
        "run the scheduler in a program of its own that enqueues jobs",
        modules=("apscheduler",),
        threads=("APScheduler",),
    ),
    MULTIPROCESSING,
    THREADS_OF_C,
    EVENT_LOOP,
)  # fmt: skip


def by_modules(names: Iterable[str]) -> Library | None:
    """The library that the first of these modules to belong to one belongs to."""
    for name in names:
        for library in LIBRARIES:
            if any(name == prefix or name.startswith(prefix + ".") for prefix in library.modules):
                return library
    return None


def by_thread(name: str) -> Library | None:
    """The library that gives its threads such names."""
    return next((lib for lib in LIBRARIES if lib.threads and name.startswith(lib.threads)), None)


def by_command(command: str) -> Library | None:
    """The library that starts such processes."""
    return next((lib for lib in LIBRARIES if any(part in command for part in lib.commands)), None)


def by_shared_memory(path: str) -> Library | None:
    """The library that gives such names to memory that it shares."""
    return MULTIPROCESSING if path.startswith((SEMAPHORE, SHARED + "psm_")) else None


def by_file(paths: Iterable[str]) -> Library | None:
    """The library whose pools of threads shared libraries of these names bring."""
    parts = THREADS_OF_C.files
    return THREADS_OF_C if any(part in path for path in paths for part in parts) else None
