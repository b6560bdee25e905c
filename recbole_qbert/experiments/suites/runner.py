"""Run trials that have no result yet, each in a child process.

Ctrl-C and SIGTERM stop the children; the same command continues with what is left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from recbole_qbert.experiments.suites.progress_display import Status
from recbole_qbert.experiments.suites.trials import Trial
from recbole_qbert.utils.console import say
from recbole_qbert.utils.io import write_json

WORKER = (sys.executable, "-m", "recbole_qbert.experiments.suites.worker")
_LOOK = 0.1  # seconds between looks at the children: trials take seconds to hours
_UNITS = {"h": 3600, "m": 60, "s": 1}


class Interrupted(Exception):
    """Raised after Ctrl-C or SIGTERM; the children are stopped."""


@dataclass
class Outcome:
    """Result of one call of ``run``.

    Attributes:
        ran: trials that got a result in this call.
        kept: trials that had a result before.
        failed: folder of the trial -> reason; also trials that failed before and were not retried.
        left: trials that the time limit did not reach.
    """

    ran: list[Trial] = field(default_factory=list)
    kept: list[Trial] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    left: list[Trial] = field(default_factory=list)


@dataclass
class _Child:
    trial: Trial
    process: subprocess.Popen[bytes]
    started: float


def run(
    trials: Iterable[Trial],
    *,
    jobs: int = 1,
    threads: int | None = None,
    retry: bool = False,
    time_limit: float | None = None,
    worker: Sequence[str] = WORKER,
) -> Outcome:
    """Run every trial that has no result; one that fails does not stop the others.

    Args:
        trials: in the order of running; duplicates are run once.
        jobs: how many trials run at a time.
        threads: of each trial; by default the cores divided by ``jobs``, or what ``OMP_NUM_THREADS`` says.
        retry: run again what failed before.
        time_limit: seconds after which no further trial is started; running ones are finished.
        worker: command that runs a trial; the folder is appended to it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the children are stopped.
    """
    outcome, waiting = Outcome(), []
    for trial in _once(trials):
        failure = trial.failure()
        if trial.result() is not None:
            outcome.kept.append(trial)
        elif failure and not retry:
            outcome.failed[trial.folder] = failure["reason"]
        else:
            waiting.append(trial)
    earlier = f", {len(outcome.failed)} failed before (--retry tries them again)" if outcome.failed else ""
    say(f"{len(waiting)} trials to run, {len(outcome.kept)} done{earlier}")
    threads = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // jobs)
    end = time.monotonic() + time_limit if time_limit is not None else float("inf")
    children: list[_Child] = []
    with _stoppable(children) as received, Status(len(waiting)) as status:
        while (waiting or children) and not received:
            while waiting and len(children) < jobs and time.monotonic() < end:
                trial = waiting.pop(0)
                if trial.result() is None:
                    children.append(_start(trial, threads, worker))
                else:  # run meanwhile by another command
                    outcome.kept.append(trial)
            if not children and time.monotonic() >= end:
                break
            time.sleep(_LOOK)
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                status.end(_end(child, outcome))
            status.show([(name_of(child.trial), child.trial.folder) for child in children])
        if received:
            raise Interrupted(signal.Signals(received[0]).name)
    outcome.left = waiting
    if waiting:
        say(f"time limit reached: {len(waiting)} trials left; the same command goes on with them")
    return outcome


def duration(text: str) -> float:
    """Convert ``2h``, ``30m``, ``1h30m`` or ``45s`` to seconds.

    Raises:
        ValueError: another form.

    >>> duration("1h30m")
    5400.0
    """
    parts = re.findall(r"([\d.]+)([hms])", text)
    try:
        if not parts or "".join(map("".join, parts)) != text:
            raise ValueError
        return float(sum(float(number) * _UNITS[unit] for number, unit in parts))
    except ValueError:
        raise ValueError(f"time limit is {text!r}; write it as 2h, 30m or 1h30m") from None


def name_of(trial: Trial) -> str:
    """Name a trial for a person."""
    return f"{trial.spec.name}, seed {trial.seed}"


def _once(trials: Iterable[Trial]) -> Iterable[Trial]:
    """Deduplicate trials by folder; keep the strictest requirements (checkpoint, IDs)."""
    by_folder: dict[Path, Trial] = {}
    for trial in trials:
        same = by_folder.setdefault(trial.folder, trial)
        more = trial if trial.spec.keep and not same.spec.keep else same
        by_folder[trial.folder] = replace(more, with_ids=trial.with_ids or same.with_ids)
    return by_folder.values()


def _start(trial: Trial, threads: int, worker: Sequence[str]) -> _Child:
    trial.folder.mkdir(parents=True, exist_ok=True)
    (trial.folder / "failed.json").unlink(missing_ok=True)
    write_json(trial.folder / "config.json", {**trial.request, "with_ids": trial.with_ids})
    environment = dict(os.environ)
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # Import the same code in any working directory; iterate over sets in the same order in every run.
    package = str(Path(__file__).resolve().parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment["PYTHONHASHSEED"] = "0"
    with open(trial.folder / "log.txt", "ab") as log:  # append: another command may be running this trial
        process = subprocess.Popen(
            [*worker, str(trial.folder), "--with_parent"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,  # Ctrl-C comes here, not there
        )  # fmt: skip
    return _Child(trial, process, time.monotonic())


def _end(child: _Child, outcome: Outcome) -> str:
    """Record the outcome of a child that has ended; return the line to print."""
    trial, code = child.trial, child.process.returncode
    assert child.process.stdin is not None
    child.process.stdin.close()
    took = f"{time.monotonic() - child.started:.0f} s"
    result = trial.result()
    if result is not None:
        outcome.ran.append(trial)
        test = result["test"]
        figures = f"{test['plain']['ndcg@10']:.4f}, history excluded {test['history_excluded']['ndcg@10']:.4f}"
        return f"{name_of(trial)}: NDCG@10 {figures}; {result['epochs']} epochs, {took}"
    failure = trial.failure()
    if failure:
        reason = failure["reason"]
    elif code < 0:  # no failed.json: the same command tries it again
        reason = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    else:
        reason = f"ended with status {code} and without a result"
        write_json(trial.folder / "failed.json", {"reason": reason, "log": []})
    outcome.failed[trial.folder] = reason
    return f"{name_of(trial)}: FAILED after {took}: {reason} (log: {trial.folder / 'log.txt'})"


@contextmanager
def _stoppable(children: list[_Child]) -> Iterator[list[int]]:
    """Collect the signals of Ctrl-C and SIGTERM in the list; stop the children when the block ends, for whatever reason."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        # An exception from here would be lost where Python swallows exceptions: in a collector's callback, in ``__del__``.
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
