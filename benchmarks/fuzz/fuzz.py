"""Calls every public function with bad arguments: clear errors, and nothing changed by them.

    python -m benchmarks.fuzz.fuzz --cases 100000 --seconds 2400 --json fuzz.json

A case draws a function and its arguments, one or two of them wrong. What it raises must be one of
the errors that its documentation names, with a message that says what was received; models,
arrays, files and the settings of Keras must then be as they were; and it must end in time. The
same seed draws the same cases, so ``--only NUMBER`` repeats a case.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import io
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import keras_ntt
from benchmarks.fuzz import models, values
from benchmarks.fuzz.arguments import ENTRIES, Entry
from benchmarks.fuzz.models import World
from benchmarks.fuzz.values import UserError

for _part in ("entries", "scores", "files"):
    importlib.import_module(f"benchmarks.fuzz.{_part}")  # they add their entries, in this order

# Errors from calling a custom function with wrong arguments.
_MISFIT = re.compile(
    "positional argument|takes no arguments|Missing data for input|must override `get_config"
)
LIMIT = 60.0
"""Seconds of processor time that a case may take; by the clock ten times as long."""


class TooLong(BaseException):
    """A case did not end in time."""


@dataclass
class Finding:
    """A case that did not go as it must."""

    number: int
    entry: str
    what: str
    arguments: str
    where: str = ""


@dataclass
class Tally:
    """What came of the cases."""

    outcomes: dict[str, collections.Counter] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, entry: str, outcome: str, seconds: float) -> None:
        """Count a case."""
        self.outcomes.setdefault(entry, collections.Counter())[outcome] += 1
        self.slowest[entry] = max(self.slowest.get(entry, 0.0), seconds)
        self.seconds[entry] = self.seconds.get(entry, 0.0) + seconds

    @property
    def cases(self) -> int:
        """How many cases there were."""
        return sum(sum(counter.values()) for counter in self.outcomes.values())

    @property
    def by_exception(self) -> dict[str, int]:
        """How often each exception was raised."""
        return dict(sum(self.outcomes.values(), collections.Counter()).most_common())


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong if what is within takes longer."""

    def end(*_: Any) -> None:
        raise TooLong

    timers = [
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds),
    ]
    before = [signal.signal(number, end) for number, _, _ in timers]
    for _, timer, length in timers:
        signal.setitimer(timer, length)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def draw(entry: Entry, rng: random.Random, world: World) -> tuple[dict[str, Any], list[str]]:
    """Draw the arguments of a call; return them and the names of those that are spoiled."""
    names = list(entry.arguments)
    odds = [entry.arguments[name].spoil for name in names]
    spoiled: list[str] = []
    if any(odds):
        spoiled = rng.choices(names, odds, k=rng.choice([1, 1, 1, 2]))
    arguments = {}
    for name, argument in entry.arguments.items():
        make = argument.good
        if name in spoiled:
            make = argument.bad or (lambda rng, world: nasty(rng))
        arguments[name] = make(rng, world)
    return arguments, spoiled


def nasty(rng: random.Random) -> Any:
    """Draw a value of any kind."""
    return values.nasty(rng)


def _is_the_users(error: BaseException) -> bool:
    """Tell whether an error comes out of a custom model or function."""
    frames = traceback.extract_tb(error.__traceback__)
    own = (models.__file__, values.__file__)
    return any(f.filename in own and f.name in ("call", "<lambda>") for f in frames[2:])


def judge(error: BaseException, entry: Entry, spoiled: list[str]) -> str:
    """Return what is wrong with an error, or nothing."""
    name = type(error).__name__
    text = str(error)
    if isinstance(error, UserError) or _MISFIT.search(text) or _is_the_users(error):
        return ""  # from custom code, or from calling it
    if isinstance(error, AssertionError):
        return f"broken promise: {text[:300]}"
    if not isinstance(error, entry.raises):
        return f"undocumented {name}: {text[:300]}"
    if entry.foreign & set(spoiled):
        return ""
    of_file = isinstance(error, OSError) and error.filename is not None
    if len(text) < 20 or not ("Received" in text or of_file):
        return f"{name} that does not say what was received: {text[:300]!r}"
    return ""


def _calls(error: BaseException) -> str:
    """Return the last calls of an error, with files named from their package on."""
    calls = "".join(traceback.format_tb(error.__traceback__)[-3:])
    return re.sub(r'"[^"]*?/(keras_ntt|benchmarks|site-packages)/', r'"\1/', calls)


def run(number: int, seed: int, world: World, tally: Tally) -> None:
    """Run one case and count what came of it."""
    rng = random.Random(f"{seed}:{number}")
    names = list(ENTRIES)
    entry = ENTRIES[rng.choices(names, [ENTRIES[n].weight for n in names])[0]]
    world.begin()
    begin = time.perf_counter()
    outcome, wrong, where, described = "returned", "", "", ""
    arguments: dict[str, Any] = {}
    spoiled: list[str] = []
    try:
        with limited(LIMIT), warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            arguments, spoiled = draw(entry, rng, world)
            described = describe(arguments, spoiled)
            entry.call(**arguments)
    except TooLong:
        outcome, wrong = "TooLong", f"took more than {LIMIT:.0f} s of processor time"
    except Exception as error:
        outcome = type(error).__name__
        wrong = judge(error, entry, spoiled)
        if isinstance(error, tf.errors.OpError) and world.uses("subclassed"):
            wrong = ""  # TensorFlow's error in custom code, whose frames it leaves out
        where = _calls(error) if wrong else ""
    finally:
        arguments.clear()
    seconds = time.perf_counter() - begin
    tally.add(entry.name, outcome, seconds)
    changed = [] if outcome == "returned" and entry.changes else world.changes()
    if wrong:
        tally.findings.append(Finding(number, entry.name, wrong, described, where))
    if changed:
        what = f"changed by a call that {outcome}: {', '.join(changed)[:300]}"
        tally.findings.append(Finding(number, entry.name, what, described))
    world.renew(models=bool(changed) or (entry.changes and outcome == "returned"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what is printed to oneself."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def describe(arguments: dict[str, Any], spoiled: list[str]) -> str:
    """Return the spoiled arguments in words."""
    parts = []
    for name, value in arguments.items():
        try:
            text = repr(value)
        except Exception as error:
            text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
        parts.append(f"{'*' if name in spoiled else ''}{name}={text[:200]}")
    return ", ".join(parts)[:1500]


def soak(
    *, cases: int, seconds: float, seed: int = 0, only: int | None = None, say: Any = None
) -> tuple[Tally, float]:
    """Run cases until there were enough or time is over.

    Args:
        cases: How many at most.
        seconds: How long at most.
        seed: What they are drawn by.
        only: The number of the one case to run.
        say: Function that is told of progress and findings.

    Returns:
        What came of them, and the seconds it took.
    """
    tally, begin = Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz – две ") as folder:
        here = os.getcwd()
        os.chdir(folder)
        world = World(pathlib.Path(folder))
        try:
            for number in range(cases) if only is None else [only]:
                if time.perf_counter() - begin > seconds:
                    break
                known = len(tally.findings)
                run(number, seed, world, tally)
                if say is not None:
                    for finding in tally.findings[known:]:
                        say(f"{finding.number} {finding.entry}: {finding.what}")
                    if number % 5000 == 4999:
                        say(f"{number + 1:,} cases in {time.perf_counter() - begin:.0f} s")
                if number % 2000 == 1999:
                    keras.backend.clear_session()
        finally:
            os.chdir(here)
    return tally, time.perf_counter() - begin


def report(tally: Tally, seconds: float, seed: int) -> dict[str, Any]:
    """Return what came of the cases as plain numbers and words."""
    import platform

    import numpy as np

    return {
        "cases": tally.cases,
        "seconds": round(seconds, 1),
        "cases_per_second": round(tally.cases / max(seconds, 1e-9), 2),
        "seed": seed,
        "limit_seconds": LIMIT,
        "versions": {
            "keras_ntt": keras_ntt.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "by_exception": tally.by_exception,
        "by_function": {name: dict(c) for name, c in sorted(tally.outcomes.items())},
        "slowest_seconds": {k: round(v, 3) for k, v in sorted(tally.slowest.items())},
        "findings": [asdict(finding) for finding in tally.findings],
    }


def table(tally: Tally) -> str:
    """Return the counts by function as a table."""
    lines = [f"{'function':38}{'cases':>8}{'refused':>9}{'returned':>9}{'ms':>8}{'slowest s':>11}"]
    for name, counter in sorted(tally.outcomes.items()):
        total = sum(counter.values())
        mean = 1000 * tally.seconds[name] / total
        lines.append(
            f"{name:38}{total:8,}{total - counter['returned']:9,}{counter['returned']:9,}"
            f"{mean:8.1f}{tally.slowest[name]:11.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the command line; the exit code is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2400.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case to repeat")
    parser.add_argument("--json", type=pathlib.Path, help="a file to write")
    options = parser.parse_args()
    path = None if options.json is None else options.json.resolve()
    stdout = sys.stdout

    def say(line: str) -> None:
        print(line, file=stdout, flush=True)

    tally, seconds = soak(
        cases=options.cases,
        seconds=options.seconds,
        seed=options.seed,
        only=options.only,
        say=say,
    )
    print(table(tally))
    print(", ".join(f"{name} {count:,}" for name, count in tally.by_exception.items()))
    print(f"{tally.cases:,} cases in {seconds:.0f} s, {len(tally.findings)} findings")
    for finding in tally.findings:
        print(f"\ncase {finding.number}, {finding.entry}: {finding.what}\n  {finding.arguments}")
        print(finding.where)
    if path is not None:
        path.write_text(json.dumps(report(tally, seconds, options.seed), indent=2) + "\n")
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
