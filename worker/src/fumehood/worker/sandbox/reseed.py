"""Random state made distinct in each sandbox.

A fork copies the state of every generator: what was seeded at import gives the same numbers in all
jobs. CPython reseeds the functions of ``random`` itself; ``uuid``, ``secrets``, ``ssl`` and
``tempfile`` are safe as they are. Here are the others: each ``random.Random``, and of numpy, if its
``random`` is loaded, each ``RandomState`` (the one behind ``numpy.random.seed`` too) and each
``Generator``, by its bit generator.

Seeded on purpose or not, they are reseeded, for that cannot be told afterwards; to seed inside the
task is the better way. A module that does want the same numbers in every job sets
``__fumehood_keep_random__ = True``, which holds for what is found under its names (``holders`` says
how far). A ``Random`` or its class may have this attribute instead. The children that
``Generator.spawn`` gives depend on the first seed alone, and stay the same in all sandboxes.
"""

from __future__ import annotations

import gc
import os
import sys

from fumehood.worker.sandbox import holders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Step = Callable[[], object]

#: The opt-out: an attribute of a module, of a ``Random`` or of its class.
KEEP = "__fumehood_keep_random__"

# A later one takes its subclasses from an earlier one: nobody can seed a SystemRandom.
_CLASSES = (
    ("random", "Random"),
    ("random", "SystemRandom"),
    ("tempfile", "_RandomNameSequence"),
    ("numpy.random.mtrand", "RandomState"),
    ("numpy.random.bit_generator", "BitGenerator"),
    ("numpy.random", "Generator"),
    ("numpy.random", "SeedSequence"),
)

_SEED = "_seed_seq"  # of a BitGenerator, which had no public name for it before numpy 1.25
_PCG = ("PCG64", "PCG64DXSM")  # the first is what default_rng gives
_BITS = "_bit_generator"  # of a RandomState, which has no public name for it

# Not looked into: that they are loaded is all that is known of their state.
_ELSEWHERE = {
    "torch": "call torch.seed() inside the task",
    "tensorflow": "call tensorflow.random.set_seed() with a fresh number inside the task",
}


class Plan:
    """What ``survey`` found to be reseeded. With ``is_empty`` there is nothing to apply.

    ``warnings``: what is the same in all sandboxes and cannot be helped, a line for each.
    """

    def __init__(self, steps: list[Step], warnings: list[str]) -> None:
        self.is_empty = not steps
        self.warnings = warnings
        self._steps = steps

    def apply(self) -> None:
        """Reseed everything from the kernel. In each sandbox, before code of the task runs."""
        for step in self._steps:
            step()


def survey(modules: Iterable[str]) -> Plan:
    """Find the generators of this process, in which ``modules`` were imported.

    To be called after ``gc.collect`` and before ``gc.freeze``, which hides objects. Each is
    reseeded once, as a trial.
    """
    names = list(modules)
    found = _instances()
    # What is known by the generator that holds the state: a Generator and its bits are one.
    states: dict[int, Any] = {id(each): each for each in found["Random"] + found["BitGenerator"]}
    states |= {id(each): getattr(each, _BITS) for each in found["RandomState"]}
    states |= {id(each): each.bit_generator for each in found["Generator"]}
    done = _safe(found) | _opted_out(names, states)
    steps: list[Step] = []
    for name, step_of in _STEPS.items():
        for each in found[name]:
            state = id(states[id(each)])
            step = _tried(step_of, each) if state not in done else None
            if step is not None:
                done.add(state)
                steps.append(step)
    left = {key for key, state in states.items() if id(state) not in done}
    used = {id(getattr(bits, _SEED, None)) for bits in found["BitGenerator"]}
    left |= {id(each) for each in found["SeedSequence"]} - used
    return Plan(steps, _warnings(names, left))


def _instances() -> dict[str, list[Any]]:
    """The instances of each class in ``_CLASSES``. The collector knows of them all."""
    kinds: dict[int, str] = {}
    for module, name in _CLASSES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            kinds |= {id(each): name for each in _with_subclasses(kind)}
    found: dict[str, list[Any]] = {name: [] for _, name in _CLASSES}
    objects: list[object] = gc.get_objects() if kinds else []
    for each in objects:
        kind_of = kinds.get(id(type(each)))  # not isinstance, which would run code of proxies
        if kind_of is not None:
            found[kind_of].append(each)
    return found


def _with_subclasses(kind: Any) -> list[Any]:
    below: list[Any] = type.__subclasses__(kind)
    return [kind, *(each for direct in below for each in _with_subclasses(direct))]


def _safe(found: dict[str, list[Any]]) -> set[int]:
    """The ids of those that are distinct in each sandbox without us."""
    safe = {id(getattr(sys.modules.get("random"), "_inst", None))}  # which CPython reseeds
    # These make a new one when they find themselves in another process.
    return safe | {id(getattr(each, "_rng", None)) for each in found["_RandomNameSequence"]}


def _opted_out(modules: list[str], states: dict[int, Any]) -> set[int]:
    marked = [name for name in modules if holders.variables(name).get(KEEP)]
    named = holders.find(marked, lambda each: id(each) in states) if marked else ()
    kept = {id(states[id(each)]) for _, _, each in named}
    return kept | {id(each) for each in states.values() if getattr(each, KEEP, False)}


def _step_of_random(instance: Any) -> Step:
    seed: Step = instance.seed
    return seed


# What numpy itself does to seed touches so many pages, each copied in a fork, that it takes three
# times as long as to hand it a state made of random bits, where any bits are one.


def _step_of_state(state: Any) -> Step:
    """A Mersenne Twister's state is 624 words, whatever they are but all zero."""
    words = sys.modules["numpy"].zeros(624, "uint32")
    data = memoryview(words).cast("B")

    def step() -> None:
        data[:] = os.urandom(len(data))
        state.set_state(("MT19937", words, len(words), 0, 0.0))

    return step


def _step_of_bits(bits: Any) -> Step:
    """A PCG has any 128 bits as its state, and any odd number as its increment."""
    whole = bits.state
    inner = whole["state"]

    def step_of_pcg() -> None:
        inner["state"] = int.from_bytes(os.urandom(16), "little")
        inner["inc"] = int.from_bytes(os.urandom(16), "little") | 1
        bits.state = whole

    def step() -> None:
        bits.state = type(bits)().state

    return step_of_pcg if whole["bit_generator"] in _PCG else step


# A RandomState comes before its own bit generator, which is then done with.
_STEPS: dict[str, Callable[[Any], Step]] = {
    "Random": _step_of_random,
    "RandomState": _step_of_state,
    "BitGenerator": _step_of_bits,
}


def _tried(step_of: Callable[[Any], Step], instance: Any) -> Step | None:
    try:
        step = step_of(instance)
        step()
    except Exception:  # a class of the task's own may want arguments, or anything
        return None
    return step


def _warnings(modules: list[str], left: set[int]) -> list[str]:
    ours = [name for name in modules if name.partition(".")[0] != "numpy"] if left else []
    warnings = [
        f"{module}.{name}, a {type(each).__name__} made at import, is the same in every sandbox: "
        "make it inside the task"
        for module, name, each in holders.find(ours, lambda each: id(each) in left)
    ]
    return warnings + [
        f"the random state of {name} is the same in every sandbox: {remedy}"
        for name, remedy in _ELSEWHERE.items()
        if name in sys.modules
    ]
