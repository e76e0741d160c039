"""Random state: two forks of one process give different numbers, unless they are asked not to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.census_tasks.fresh import installed, run

needs_numpy = pytest.mark.skipif(not installed("numpy"), reason="numpy is missing")

SURVEY = """
import gc, json
from fumehood.worker.sandbox.reseed import survey

before = set(sys.modules)
import tasks
gc.collect()
plan = survey([name for name in sys.modules if name not in before])
gc.freeze()

def draw_in_a_fork():
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        plan.apply()
        os.write(theirs, json.dumps(tasks.draw()).encode())
        os._exit(0)
    os.close(theirs)
    drawn = b""
    while part := os.read(ours, 65536):
        drawn += part
    os.close(ours)
    os.waitpid(pid, 0)
    return json.loads(drawn)

report([draw_in_a_fork(), draw_in_a_fork(), plan.is_empty, plan.warnings, tasks.draw()])
"""


class Drawn:
    """What ``tasks.draw()`` gave in two forks and in their parent, by name."""

    def __init__(self, answer: list[Any]) -> None:
        self.one, self.other, self.is_empty, self.warnings, self.parent = answer

    @property
    def same(self) -> set[str]:
        """The names of what was the same in two of the three."""
        draws = [self.one, self.other, self.parent]
        return {name for name in self.one if len({str(draw[name]) for draw in draws}) < 3}


def drawn(path: Path, **modules: str) -> Drawn:
    for name, source in modules.items():
        (path / f"{name}.py").write_text(source)
    return Drawn(run(SURVEY, [path]))


EVERYWHERE = """
import collections, random, uuid, secrets, tempfile

class Own(random.Random):
    def seed(self, *args):
        super().seed(*args)

class Holder:
    shared = random.Random(3)
    def __init__(self):
        self.mine = random.Random(4)

def with_default(rng=random.Random(5)):
    return rng.random()

def make_closure():
    rng = random.Random(6)
    return lambda: rng.random()

plain, seeded, own = random.Random(), random.Random(42), Own(1)
listed, mapped = [random.Random(7)], {"key": random.Random(8)}
queued, deep = collections.deque([random.Random(9)]), [[[[random.Random(10)]]]]
holder, closure = Holder(), make_closure()
random.seed(1)
name = next(tempfile._get_candidate_names())

def draw():
    return {
        "plain": plain.random(), "seeded": seeded.random(), "own": own.random(),
        "listed": listed[0].random(), "mapped": mapped["key"].random(),
        "queued": queued[0].random(), "deep": deep[0][0][0][0].random(),
        "shared": Holder.shared.random(), "mine": holder.mine.random(),
        "default": with_default(), "closure": closure(), "module": random.random(),
        "gauss": seeded.gauss(0, 1), "uuid": str(uuid.uuid4()), "secret": secrets.token_hex(),
        "temporary": next(tempfile._get_candidate_names()),
    }
"""


def test_wherever_a_generator_is_held_it_is_distinct(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks=EVERYWHERE)
    assert found.same == set()
    assert not found.is_empty
    assert found.warnings == []


SAFE = """
import random, uuid, secrets, tempfile
system = random.SystemRandom()
name = next(tempfile._get_candidate_names())
def draw():
    return {"module": random.random(), "system": system.random(), "uuid": str(uuid.uuid4())}
"""


def test_there_is_nothing_to_do_for_what_is_safe_as_it_is(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks=SAFE)
    assert found.is_empty
    assert found.same == set()


def test_without_random_nothing_is_looked_for(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks="def draw():\n    return {}\n")
    assert found.is_empty
    assert found.warnings == []


KEPT = """
import random, others
__fumehood_keep_random__ = True
kept = random.Random(42)
class Holder:
    rng = random.Random(43)
nested, deeper = {"a": [random.Random(44)]}, {"a": [[random.Random(45)]]}
def draw():
    return {
        "kept": kept.random(), "held": Holder.rng.random(),
        "nested": nested["a"][0].random(), "deeper": deeper["a"][0][0].random(),
        "other": others.rng.random(), "marked": others.marked.random(),
        "class": others.of_class.random(), "hidden": others.hidden[0].random(),
    }
"""
OTHERS = """
import random
class Fixed(random.Random):
    __fumehood_keep_random__ = True
rng, marked, of_class, hidden = random.Random(1), random.Random(2), Fixed(3), [random.Random(4)]
marked.__fumehood_keep_random__ = True
"""


def test_who_asks_for_it_keeps_the_same_numbers(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks=KEPT, others=OTHERS)
    assert found.same == {"kept", "held", "nested", "marked", "class"}


STUBBORN = """
import random
class Stubborn(random.Random):
    def seed(self, value):
        super().seed(value)
class Broken(random.Random):
    @property
    def seed(self):
        raise RuntimeError
stubborn = Stubborn(1)
def draw():
    return {"stubborn": stubborn.random()}
"""


def test_what_cannot_be_reseeded_is_named(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks=STUBBORN)
    assert found.same == {"stubborn"}
    (warning,) = found.warnings
    assert warning.startswith("tasks.stubborn, a Stubborn made at import, is the same")


def test_a_generator_elsewhere_is_told_of(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks="import torch\ndef draw(): return {}\n", torch="")
    (warning,) = found.warnings
    assert "torch.seed()" in warning


PROXY = """
import random
rng = random.Random(1)
class Proxy:
    @property
    def __class__(self):
        raise RuntimeError("the code of a proxy ran")
    def __eq__(self, other):
        raise RuntimeError("the code of a proxy ran")
    __hash__ = None
class Meta(type):
    def __eq__(cls, other):
        raise RuntimeError("the code of a class ran")
    __hash__ = None
class Odd(metaclass=Meta):
    __slots__ = ("other",)
proxy, odd, table = Proxy(), Odd(), {"proxy": Proxy(), "odd": [Odd()]}
__fumehood_keep_random__ = True
def draw():
    return {"rng": rng.random()}
"""


def test_no_code_of_what_is_looked_at_is_run(tmp_path: Path) -> None:
    assert drawn(tmp_path, tasks=PROXY).same == {"rng"}


NUMPY = """
import numpy as np, numpy.random
np.random.seed(1)
generator = np.random.default_rng(42)
bits = np.random.Philox(43)
state = np.random.RandomState(44)
other = np.random.RandomState(np.random.PCG64(45))
state.standard_normal()
def draw():
    return {
        "global": np.random.rand(), "generator": generator.random(), "state": state.rand(),
        "other": other.rand(), "bits": np.random.Generator(bits).random(),
    }
"""


@needs_numpy
def test_numpy_is_reseeded(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks=NUMPY)
    assert found.same == set()
    assert found.warnings == []


@needs_numpy
def test_numpy_is_kept_for_who_asks_for_it(tmp_path: Path) -> None:
    found = drawn(tmp_path, tasks=NUMPY + "__fumehood_keep_random__ = True\n")
    assert found.same == {"generator", "state", "other", "bits"}


@needs_numpy
def test_a_seed_sequence_is_named(tmp_path: Path) -> None:
    source = NUMPY + "sequence = np.random.SeedSequence(46)\n"
    (warning,) = drawn(tmp_path, tasks=source).warnings
    assert warning.startswith("tasks.sequence, a SeedSequence made at import")
