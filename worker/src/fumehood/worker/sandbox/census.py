"""A census of the imports: what importing the task modules left in the process that will fork.

Each module is looked at twice, before its code runs and after, so that what changed in between is
the doing of the innermost module that was executed: a library deep below a task module is named
itself. A look is a dozen system calls; only when two looks differ is it found out what changed, by
``ledger``, which is not loaded before. Nothing is loaded here that a zygote does not hold anyway,
and nothing stays hooked afterwards.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from _thread import get_ident

from fumehood.worker.sandbox.process_state import (
    TIMERS,
    Observer,
    by_field,
    current_wakeup_fd,
    signals_changed,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from signal import SIG_DFL, SIG_SETMASK, pthread_sigmask, set_wakeup_fd, setitimer, signal
    from types import ModuleType
    from typing import Any, Self

    from fumehood.worker.sandbox.findings import Finding
    from fumehood.worker.sandbox.ledger import Ledger
else:
    from _signal import SIG_DFL, SIG_SETMASK, pthread_sigmask, set_wakeup_fd, setitimer, signal

# Private to the interpreter, and the one place that every import passes: also those by
# ``import_module``, which ``builtins.__import__`` does not see, and without the change to loaders
# and specs that a finder on ``sys.meta_path`` would make, for others read them.
_MACHINERY = vars(sys.modules["_frozen_importlib"])
_LOAD = "_load_unlocked"
_IMPORTLIB = "<frozen importlib._bootstrap>"


class Census:
    """``with Census() as census: import_module(...)``, in the one thread that imports.

    ``on_load`` is called with the spec of each module before it is executed. After the block:

    * ``findings``: what is left, in the order in which it came. What a module left and another
      took away again is not in it
    * ``threads_left``: how many threads there are that were not there before
    * ``modules``: the names of the modules executed, in the order in which they began

    Raises ``OSError`` where there is no /proc.
    """

    def __init__(self, on_load: Callable[[ModuleSpec], None] | None = None) -> None:
        self.findings: list[Finding] = []
        self.threads_left = 0
        self.modules: list[str] = []
        self._on_load = on_load
        self._executing: list[str] = []
        self._ledger: Ledger | None = None
        self._hook: Callable[[ModuleSpec], ModuleType] | None = None
        self._culprit = ""  # the module with which looking began to fail
        self._importer = 0  # the thread whose imports are followed; 0 is none

    def __enter__(self) -> Self:
        self._observer = Observer()
        self._before = self._last = self._observer.look(deep=True)
        self._original = _MACHINERY.get(_LOAD)
        if self._original is not None:  # else this interpreter has another: nobody is named
            self._hook = _MACHINERY[_LOAD] = self._make_hook(self._original)
        self._importer = get_ident()
        return self

    def __exit__(self, *_: object) -> None:
        self._importer = 0  # should somebody have wrapped the hook, it only hands through now
        if self._hook is not None and _MACHINERY[_LOAD] is self._hook:
            _MACHINERY[_LOAD] = self._original
        self._check(deep=True)
        try:
            if self._ledger is not None or self._observer.sees_what_looks_miss():
                ledger = self._open_ledger()
                self.findings = ledger.close(self._before, self._last, self.modules)
                self.threads_left = ledger.threads_left
        except Exception as exc:
            self._observer.close()  # gives back what it takes to say so
            self._give_up(exc)
        else:
            self._observer.close()

    def _give_up(self, exc: Exception) -> None:
        from fumehood.worker.sandbox.findings import REMEDIES, SOMEWHERE, Finding

        module = self._culprit or SOMEWHERE
        detail = f"left this process so that it cannot be looked at: {exc}"
        self.findings = [Finding("file", module, detail, REMEDIES["file"])]

    def _make_hook(
        self, original: Callable[[ModuleSpec], ModuleType]
    ) -> Callable[[ModuleSpec], ModuleType]:
        executing, check, on_load = self._executing, self._check, self._on_load

        def load(spec: ModuleSpec) -> ModuleType:
            if get_ident() != self._importer:
                return original(spec)
            # Extension modules are where C code takes over signals; what it does when it is called
            # later is seen when the task module ends.
            is_of_c = type(spec.origin) is str and spec.origin.endswith(".so")
            check(deep=is_of_c)
            executing.append(spec.name)
            self.modules.append(spec.name)
            if on_load is not None:
                on_load(spec)
            try:
                return original(spec)
            finally:
                check(deep=is_of_c or len(executing) == 1)
                executing.pop()

        # The interpreter cuts frames of this file out of tracebacks, and ``warnings`` does not
        # count them: a task module's errors and warnings look as they do without a census.
        load.__code__ = load.__code__.replace(co_filename=_IMPORTLIB)
        return load

    def _check(self, *, deep: bool) -> None:
        """What changed since the last look is the doing of the module that is being executed."""
        importer, self._importer = self._importer, 0
        try:
            now = self._observer.look(deep=deep)
            if now != self._last:
                now = self._observer.look(deep=True)
                self._open_ledger().note(self._last, now, self._executing)
                self._last = now
            elif self._ledger is not None:
                self._ledger.recount(self._executing)
        except Exception:  # too many open files, most likely: a census makes no import fail
            if not self._culprit and self._executing:
                self._culprit = self._executing[-1]
        finally:
            self._importer = importer

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            from fumehood.worker.sandbox.ledger import Ledger

            self._ledger = Ledger(self._observer)
        return self._ledger

    def restore(self) -> None:
        """Put back what can be: working directory, umask, signals, timers. After the block.

        Environment and locale stay as the modules set them, for they mean to; threads, children and
        what is open stay, for nobody could use them any more.
        """
        before, last = by_field(self._before), by_field(self._last)
        self._restore_signals(before["handlers"], signals_changed(before, last))
        for timer, was, now in zip(TIMERS, before["timers"], last["timers"], strict=True):
            if now and not was:
                setitimer(timer, 0)
        if last["umask"] != before["umask"]:
            os.umask(before["umask"])
        if last["cwd"] != before["cwd"]:
            try:
                os.chdir(before["cwd"])
            except OSError:  # it is gone
                pass

    def _restore_signals(self, handlers: tuple[Any, ...], changed: list[int]) -> None:
        if current_wakeup_fd() != self._observer.wakeup_fd:
            set_wakeup_fd(self._observer.wakeup_fd)
        if not changed:
            return
        # Left enabled, it would take a later ``enable`` for done, with its handlers gone.
        if faulthandler.is_enabled() and not self._observer.catches_faults:
            faulthandler.disable()
        for number in changed:
            try:
                faulthandler.unregister(number)
            except RuntimeError:  # not one of those that can be registered
                pass
            signal(number, handlers[number - 1] or SIG_DFL)
        pthread_sigmask(SIG_SETMASK, self._observer.blocked)
