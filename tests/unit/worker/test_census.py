"""The census of the imports: what is found, who is named, and that nothing else is different."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from support.census_tasks.fresh import FAKES, installed, run, take

TESTS = Path(__file__).parents[2]
DEEP = "support.census_tasks.deep"

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a module, and gives the folder to be put on the path."""

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return tmp_path

    return write


# --- who did it ------------------------------------------------------------------------------


def test_the_module_that_did_it_is_named_and_not_those_that_imported_it() -> None:
    taken = take(f"{DEEP}.tasks", path=[TESTS])
    found = taken.only("thread")
    assert found.module == f"{DEEP}.inner.pool"
    assert found.through == [f"{DEEP}.tasks", f"{DEEP}.library"]
    assert "deep-pool" in found.detail
    assert taken.threads_left == 1
    ours = [name for name in taken.modules if name.startswith(f"{DEEP}.")]
    assert ours == [
        f"{DEEP}.tasks", f"{DEEP}.library", f"{DEEP}.inner", f"{DEEP}.inner.pool",
        f"{DEEP}.innocent",
    ]  # fmt: skip


def test_what_comes_between_two_imports_is_laid_at_nobody_elses_door() -> None:
    found = take(f"{DEEP}.tasks", path=[TESTS]).only("umask")
    assert (found.module, found.through) == (f"{DEEP}.tasks", [])
    assert "0o077" in found.detail


def test_what_an_import_inside_a_function_does_is_told_of_the_imported(write: Write) -> None:
    path = write("caller", "def call():\n    import called\n\ncall()\n")
    write("called", "import os\nos.environ['FROM_CALLED'] = 'x'\n")
    found = take("caller", path=[path]).only("environ")
    assert (found.module, found.through) == ("called", ["caller"])


def test_imports_by_other_threads_do_not_confuse_it(write: Write) -> None:
    path = write(
        "threaded",
        """
        import os, threading
        def work():
            import slow
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        os.environ["FROM_THREADED"] = "x"
        """,
    )
    write("slow", "import os\nos.umask(0o011)\n")
    taken = take("threaded", path=[path])
    assert {found.module for found in taken.findings} == {"threaded"}
    assert sorted(taken.kinds) == ["environ", "umask"]
    assert taken.threads_left == 0


# --- what is found -----------------------------------------------------------------------------

FOUND = {
    "thread": ("import threading; threading.Timer(3600, print).start()", "Thread-1"),
    "socket tcp": (
        "import socket; s = socket.create_server(('127.0.0.1', 0))",
        "TCP socket that listens on 127.0.0.1:",
    ),
    "socket connected": (
        (
            "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
            "client = socket.create_connection(server.getsockname())\n"
            "peer, _ = server.accept(); server.close()"
        ),
        "TCP socket connected to 127.0.0.1:",
    ),
    "socket udp": (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))",
        "UDP socket at 127.0.0.1:",
    ),
    "socket unix": (
        "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0census'); s.listen()",
        "a listening UNIX socket at @census",
    ),
    "file": ("f = open('/etc/passwd')", "/etc/passwd"),
    "file pipe": ("import os; ends = os.pipe()", "a pipe"),
    "signal": ("import signal; signal.signal(signal.SIGTERM, print)", "SIGTERM"),
    "signal ignored": (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)",
        "SIGHUP",
    ),
    "signal blocked": (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
        "SIGUSR1",
    ),
    "signal of C code": ("import faulthandler; faulthandler.enable()", "SIGSEGV"),
    "signal registered": (
        "import faulthandler, signal; faulthandler.register(signal.SIGUSR2)",
        "SIGUSR2",
    ),
    "signal wakeup": (
        (
            "import signal, socket\na, b = socket.socketpair()\na.setblocking(False)\n"
            "signal.set_wakeup_fd(a.fileno())"
        ),
        "set_wakeup_fd",
    ),
    "cwd": ("import os; os.chdir('/usr')", "/usr"),
    "umask": ("import os; os.umask(0o027)", "0o027"),
    "environ": ("import os; os.environ['SET_AT_IMPORT'] = 'the-value'", "SET_AT_IMPORT"),
    "child": ("import subprocess; p = subprocess.Popen(['sleep', '1.25'])", "sleep 1.25"),
    "mapping": ("import mmap; shared = mmap.mmap(-1, 5000)", "8192 bytes), held as shared"),
    "locale": ("import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')", "C.UTF-8"),
    "itimer": ("import signal; signal.setitimer(signal.ITIMER_REAL, 3600)", "ITIMER_REAL"),
    "trace": ("import sys; sys.setprofile(lambda *_: None)", "a profile function"),
}


@pytest.mark.parametrize("case", FOUND)
def test_it_is_found(case: str, write: Write) -> None:
    source, words = FOUND[case]
    path = write("package.tasks", source + "\n")
    found = take("package.tasks", path=[path], env={"LC_ALL": "C"}).only(case.split(maxsplit=1)[0])
    # Asking for the wakeup descriptor means to take it away for a moment: done in the end only.
    assert found.module == ("the task modules" if "wakeup" in case else "package.tasks")
    assert words in found.detail
    assert found.detail in found.line
    assert found.remedy in found.line
    assert "\n" not in found.line
    assert "the-value" not in found.line  # it may be a secret
    serious = ("thread", "socket", "file", "child", "mapping")
    assert found.is_serious == (found.kind in serious)


UNDONE = {
    "thread": "import threading; t = threading.Thread(target=len, args=['']); t.start(); t.join()",
    "file": "open('/etc/passwd').close()",
    "socket": "import socket; socket.socket().close()",
    "child": "import subprocess; subprocess.run(['true'])",
    "cwd": "import os; here = os.getcwd(); os.chdir('/usr'); import helper; os.chdir(here)",
    "umask": "import os; was = os.umask(0o027); import helper; os.umask(was)",
    "environ": "import os; os.environ['GONE'] = 'x'; import helper; del os.environ['GONE']",
    "signal": "import signal; was = signal.signal(1, print); import helper; signal.signal(1, was)",
    "mapping": "import mmap; shared = mmap.mmap(-1, 4096); import helper; shared.close()",
    "nothing": "import json, re",
}


@pytest.mark.parametrize("case", UNDONE)
def test_what_was_undone_is_not_found(case: str, write: Write) -> None:
    path = write("tasks", UNDONE[case] + "\n")
    write("helper", "VALUE = 1\n")
    taken = take("tasks", path=[path])
    assert [found.line for found in taken.findings] == []
    assert taken.threads_left == 0


def test_what_took_the_place_of_something_else_is_laid_at_the_right_door(write: Write) -> None:
    source = """
        passing = open("/etc/passwd")
        import helper
        passing.close()
        lasting = open("/etc/hostname")
    """
    path = write("outer", "import tasks\n")
    write("tasks", source)
    write("helper", "VALUE = 1\n")
    found = take("outer", path=[path]).only("file")
    assert (found.module, found.through) == ("tasks", ["outer"])
    assert "/etc/hostname" in found.detail
    assert "/etc/passwd" not in found.detail


def test_a_thread_that_is_about_to_end_is_waited_for(write: Write) -> None:
    source = """
        import _thread
        lock = _thread.allocate_lock()
        lock.acquire()
        _thread.start_new_thread(lock.acquire, ())
        lock.release()
    """
    taken = take("tasks", path=[write("tasks", source)])
    assert (taken.kinds, taken.threads_left) == ([], 0)


def test_a_name_cannot_forge_a_line(write: Write) -> None:
    source = "import threading; threading.Timer(3600, print).start()\n"
    source += "threading.enumerate()[-1].name = 'x\\nERROR all is lost \\ud800'\n"
    found = take("tasks", path=[write("tasks", source)]).only("thread")
    assert "x ERROR all is lost" in found.line
    assert "\n" not in found.line
    found.line.encode()


def test_what_was_done_twice_is_told_once(write: Write) -> None:
    path = write(
        "tasks", "import signal\nsignal.signal(1, print)\nimport helper\nsignal.signal(1, len)\n"
    )
    write("helper", "VALUE = 1\n")
    found = take("tasks", path=[path]).only("signal")
    assert found.detail == "changed what this signal does: SIGHUP"


def test_many_things_of_one_kind_are_one_finding(write: Write) -> None:
    path = write("tasks", "files = [open('/etc/passwd') for _ in range(20)]\n")
    found = take("tasks", path=[path]).only("file")
    assert "15 more" in found.detail


# --- libraries that are known -------------------------------------------------------------------

KNOWN = {
    "opentelemetry": (
        "from opentelemetry.sdk.trace import BatchSpanProcessor; p = BatchSpanProcessor()",
        "thread",
        "configure the exporter in the node",
    ),
    "sentry": ("import sentry_sdk; sentry_sdk.init()", "thread", "sentry_sdk.init inside"),
    "futures": (
        (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "pool = ThreadPoolExecutor(1); pool.submit(len, '').result()"
        ),
        "thread",
        "make the pool inside the task",
    ),
    "logging": (
        (
            "import logging.handlers, queue\n"
            "listener = logging.handlers.QueueListener(queue.Queue()); listener.start()"
        ),
        "thread",
        "log with plain handlers",
    ),
    "asyncio": ("import asyncio; loop = asyncio.new_event_loop()", "file", "event loop"),
    "multiprocessing": (
        "import multiprocessing; lock = multiprocessing.get_context('fork').Lock()",
        "mapping",
        "multiprocessing",
    ),
    "resource tracker": (
        "from multiprocessing import resource_tracker; resource_tracker.ensure_running()",
        "child",
        "multiprocessing",
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_libraries_are_explained(case: str, write: Write) -> None:
    source, kind, words = KNOWN[case]
    taken = take("app", path=[write("app", source + "\n"), FAKES])
    found = taken.only(kind)
    assert found.module == "app"
    assert words in found.remedy
    if case == "asyncio":
        assert taken.kinds == ["file"]  # with the sockets that belong to it


@pytest.mark.skipif(not installed("opentelemetry-sdk"), reason="opentelemetry-sdk is missing")
def test_the_real_opentelemetry_is_explained(write: Write) -> None:
    source = """
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
        processor = BatchSpanProcessor(ConsoleSpanExporter())
    """
    found = take("app", path=[write("app", source)]).only("thread")
    assert (found.module, found.through) == ("app", [])
    assert "OpenTelemetry" in found.remedy


@pytest.mark.skipif(not installed("numpy"), reason="numpy is missing")
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core: OpenBLAS starts no threads")
def test_the_threads_of_the_real_numpy_are_explained(write: Write) -> None:
    path = write("app", "import numpy\n")
    taken = take("app", path=[path], env={"OPENBLAS_NUM_THREADS": "2"})
    found = taken.only("thread")
    assert found.module.startswith("numpy.")
    assert found.through[:2] == ["app", "numpy"]
    assert "OPENBLAS_NUM_THREADS" in found.remedy
    assert take("app", path=[path], env={"OPENBLAS_NUM_THREADS": "1"}).findings == []


# --- what is put back ---------------------------------------------------------------------------

DISTURB = """
import os, signal, socket, faulthandler
os.chdir("/usr")
os.umask(0o001)
signal.signal(signal.SIGTERM, print)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.setitimer(signal.ITIMER_REAL, 3600)
faulthandler.enable()
faulthandler.register(signal.SIGUSR2)
ends = socket.socketpair()
ends[0].setblocking(False)
signal.set_wakeup_fd(ends[0].fileno())
"""

STATE = """
def state():
    status = open("/proc/self/status").read().splitlines()
    masks = [line for line in status if line[:6] in ("SigBlk", "SigIgn", "SigCgt", "Umask:")]
    handlers = [str(signal.getsignal(n)) for n in signal.valid_signals()]
    wakeup = signal.set_wakeup_fd(-1)
    timer = signal.getitimer(signal.ITIMER_REAL)
    return [masks, handlers, wakeup, timer, os.getcwd(), faulthandler.is_enabled()]
"""


def test_it_puts_back_what_it_can(write: Write) -> None:
    path = write("disturb", DISTURB)
    code = f"""
import faulthandler, os, signal
from fumehood.worker.sandbox.census import Census
{STATE}
before = state()
with Census() as census:
    import disturb
between = state()
signal.set_wakeup_fd(disturb.ends[0].fileno())
census.restore()
report([before, between, state()])
"""
    before, between, after = run(code, [path])
    assert after == before
    assert not [i for i, (one, two) in enumerate(zip(before, between, strict=True)) if one == two]


def test_crashes_are_caught_although_a_module_had_enabled_it_for_itself(write: Write) -> None:
    path = write("disturb", DISTURB)
    code = """
import faulthandler, os, signal, tempfile
from fumehood.worker.sandbox.census import Census
with Census() as census:
    import disturb
census.restore()
file = tempfile.TemporaryFile()
signal.signal(signal.SIGSEGV, signal.SIG_DFL)
faulthandler.enable(file)
pid = os.fork()
if not pid:
    os.kill(os.getpid(), signal.SIGSEGV)
os.waitpid(pid, 0)
file.seek(0)
report(file.read().decode())
"""
    assert "Segmentation fault" in run(code, [path])


def test_what_modules_set_on_purpose_stays(write: Write) -> None:
    path = write(
        "app", "import os, locale; os.environ['KEPT'] = '1'; locale.setlocale(0, 'C.UTF-8')"
    )
    then = "census.restore(); import locale; extra = [os.environ['KEPT'], locale.setlocale(0)]"
    taken = take("app", path=[path], then=then, env={"LC_ALL": "C"})
    assert taken.extra == ["1", "C.UTF-8"]
    assert taken.kinds == ["environ", "locale"]


# --- that nothing else is different -------------------------------------------------------------


def test_a_quiet_import_loads_and_leaves_nothing_of_it(write: Write) -> None:
    code = """
import faulthandler, gc, select
import fumehood.worker.sandbox.child  # with the two above this is what a zygote holds anyway
machinery = dict(vars(sys.modules["_frozen_importlib"]))
def libraries():
    return sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
modules, before = set(sys.modules), libraries()
from fumehood.worker.sandbox.census import Census
from fumehood.worker.sandbox.codewatch import Sources
from fumehood.worker.sandbox.reseed import survey
with Census(Sources().note) as census:
    import quiet
plan = survey(census.modules)
report([
    sorted(set(sys.modules) - modules - {"quiet"}),
    [name for name, value in vars(sys.modules["_frozen_importlib"]).items()
        if machinery[name] is not value],
    libraries() == before,
    os.listdir("/proc/self/fd"),
    plan.is_empty and not census.findings,
])
"""
    loaded, hooked, same, fds, quiet = run(code, [write("quiet", "VALUE = 1\n")])
    ours = {"census", "codewatch", "holders", "killer", "process_state", "reseed"}
    names = {name.removeprefix("fumehood.worker.sandbox.") for name in loaded}
    assert names <= ours | {"_locale"}  # the last is a part of the interpreter
    assert {"census", "process_state"} <= names
    assert hooked == []
    assert same
    assert len(fds) == 5  # 0 to 2, the answer's and that of listing them
    assert quiet


@pytest.mark.parametrize("how", ["raise ValueError('broken')", "import missing_module", "(", "1/0"])
def test_an_import_that_fails_looks_as_without_it(how: str, write: Write) -> None:
    path = write("outer", "import inner\n")
    write("inner", f"import os; os.umask(1)\n{how}\n")
    code = """
import traceback
from fumehood.worker.sandbox.census import Census
machinery = dict(vars(sys.modules["_frozen_importlib"]))
def attempt():
    try:
        import outer
    except Exception:
        return traceback.format_exc()
def counted():
    with Census() as census:
        return attempt(), census
plain = attempt()
text, census = counted()
assert dict(vars(sys.modules["_frozen_importlib"])) == machinery
os.umask(0o22)
try:
    with Census() as census:
        import outer
except Exception as exc:
    pass
report([plain, text, [f.module for f in census.findings]])
"""
    plain, counted, modules = run(code, [path])
    assert counted == plain
    assert modules == ([] if how == "(" else ["inner"])


def test_warnings_are_laid_at_the_same_lines(write: Write) -> None:
    path = write("outer", "\n\nimport inner\n")
    write("inner", "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n")
    code = """
import warnings
from fumehood.worker.sandbox.census import Census
with warnings.catch_warnings(record=True) as caught, Census():
    warnings.simplefilter("always")
    import outer
report([[os.path.basename(w.filename), w.lineno] for w in caught])
"""
    assert run(code, [path]) == [["outer.py", 3]]


def test_a_module_that_closes_all_descriptors_is_survived(write: Write) -> None:
    path = write(
        "closes", "import os\nos.closerange(3, 250)\nf = [open('/etc/passwd') for _ in range(3)]\n"
    )
    answer = "os.dup2(_answer, 251); _answer = 251\n"  # which is spared
    code = f"""
from fumehood.worker.sandbox.census import Census
{answer}
with Census() as census:
    import closes
    import json.tool
report([[f.kind for f in census.findings], [file.readline() for file in closes.f]])
"""
    kinds, lines = run(code, [path])
    assert kinds == ["file"]
    assert all(lines)  # those that came to lie where the census had its own


def test_a_module_that_takes_all_descriptors_is_survived(write: Write) -> None:
    source = """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(open("/etc/passwd"))
        except OSError:
            pass
        try:
            import json.tool
        except OSError:
            failed = True
        del taken[:]
    """
    taken = take("takes", path=[write("takes", source)])
    assert "takes" in taken.modules
    assert taken.kinds == []


def test_a_module_that_keeps_all_descriptors_is_named(write: Write) -> None:
    source = """
        import json, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True:
                taken.append(open("/etc/passwd"))
        except OSError:
            pass
    """
    taken = take("takes", path=[write("outer", "import takes\n"), write("takes", source)])
    found = taken.only("file")
    assert found.module == "takes"
    assert "Too many open files" in found.detail


def test_a_hook_that_was_put_over_it_is_left_to_its_owner(write: Write) -> None:
    source = """
        import sys
        machinery = vars(sys.modules["_frozen_importlib"])
        inner = machinery["_load_unlocked"]
        machinery["_load_unlocked"] = lambda spec: inner(spec)
    """
    then = "count = len(census.modules); import json.tool; extra = len(census.modules) - count"
    taken = take("hooks", path=[write("hooks", source)], then=then)
    assert taken.extra == 0


def test_a_thread_that_cannot_be_described_makes_no_import_fail(write: Write) -> None:
    source = """
        import threading
        class Odd(threading.Thread):
            name = property(lambda self: 1 / 0, lambda self, value: None)
        stopped = threading.Event()
        Odd(target=stopped.wait, daemon=True).start()
    """
    taken = take("odd", path=[write("odd", source)])
    assert (taken.kinds, taken.threads_left) == (["thread"], 1)
    assert taken.only("thread").module == "odd"


def test_without_the_hook_things_are_found_all_the_same(write: Write) -> None:
    code = """
from fumehood.worker.sandbox import census
census._LOAD = "_not_in_this_python"
with census.Census() as found:
    import quits
report([str(finding) for finding in found.findings])
"""
    (line,) = run(code, [write("quits", "import os\nos.umask(0o077)\n")])
    assert line.startswith("importing the task modules changed the umask to 0o077")
