"""Share one job among several processes that `torchrun` starts; with one process, everything here is a plain call.

Results are exchanged as files in a shared folder. The process group (gloo, no GPU needed) carries only 'ready', 'done' and
errors, so that no process starts early, waits for a dead process, or works on another job.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from recbole_qbert.utils.distributed import init_group

T = TypeVar("T")
START_TIMEOUT = timedelta(minutes=10)  # for all processes to join
WORK_TIMEOUT = timedelta(days=7)  # for the slowest process to finish; a process that dies is noticed at once
DIED = (
    "another process of this run stopped before its work was done (see its own message); start the same command again, "
    "finished shards are kept"
)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of a run.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        group: the process group, or ``None`` for one process.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> ProcessGroup:
        """Join the processes that the environment names (``RANK``, ``WORLD_SIZE``); without these there is one process.

        Raises:
            ValueError: the environment is not one of `torchrun`, or the other processes do not join.
        """
        rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        if not 0 <= rank < world:
            raise ValueError(
                f"RANK is {rank} and WORLD_SIZE is {world} in the environment; start several processes with torchrun"
            )
        if world == 1:
            return cls()
        if not dist.is_available():
            raise ValueError("this torch is built without torch.distributed; run one process, or install another build")
        try:
            if not dist.is_initialized():
                init_group("gloo", timeout=START_TIMEOUT)
            return cls(rank, world, dist.new_group(backend="gloo", timeout=WORK_TIMEOUT))
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"process {rank} of {world} could not join the others ({error}); start them with torchrun, or unset RANK "
                "and WORLD_SIZE for one process"
            ) from error

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` in process 0 and return its result, or raise its error, in all processes.

        Raises:
            ValueError: ``work`` failed (process 0 raises its own error), or another process died.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]  # result, text of the error
        failure = None
        if self.rank == 0:
            try:
                outcome[0] = work()
            except (ValueError, OSError) as error:
                failure, outcome[1] = error, str(error)
        self._communicate(lambda: dist.broadcast_object_list(outcome, src=0, group=self.group))
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise ValueError(outcome[1])
        return outcome[0]

    def wait(self) -> None:
        """Wait for all processes.

        Raises:
            ValueError: a process died.
        """
        if self.world > 1:
            self._communicate(lambda: dist.barrier(group=self.group))

    def require_same(self, value: str, what: str) -> None:
        """Refuse the run if the processes have different values.

        Raises:
            ValueError: another process has another value, or died.
        """
        if self.world == 1:
            return
        values: list[Any] = [None] * self.world
        self._communicate(lambda: dist.all_gather_object(values, value, group=self.group))
        different = [number for number, other in enumerate(values) if other != values[0]]
        if different:
            raise ValueError(
                f"processes 0 and {different[0]} of this run differ in {what}; give all processes the same command, model "
                "files, library versions and shared folder"
            )

    def _communicate(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ValueError(f"{DIED} ({error})") from error


def pick_device(device: str) -> torch.device:
    """Choose the device; ``auto`` is this process's GPU (``LOCAL_RANK``) if there is one, else the CPU.

    Raises:
        ValueError: torch does not know the device, or the machine does not have it.
    """
    try:
        if device == "auto":
            gpus = torch.cuda.device_count()
            return torch.device("cuda", _number("LOCAL_RANK", 0) % gpus) if gpus else torch.device("cpu")
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        text = str(error).split("\n")[0]
        raise ValueError(f"device {device!r} cannot be used here ({text}); use auto, cpu, cuda or cuda:N") from error


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r} in the environment; it must be a number (torchrun sets it)")
    return int(text)
