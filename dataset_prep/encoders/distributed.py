"""Several processes at one piece of work, as `torchrun` starts them; alone, everything here is a plain call.

What they make goes through files on a folder that all of them see. The process group (gloo, no GPU needed) carries only
'ready', 'done' and refusals, so that nobody starts early, waits for the dead, or works on something else.
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
START = timedelta(minutes=10)  # for all processes to appear
WORK = timedelta(days=7)  # for the slowest of them to finish; a process that dies is noticed at once
DIED = (
    "another process of this run stopped before its work was done (its own message says why); start the same command again, "
    "finished shards are kept"
)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of a run.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        group: the process group, or ``None`` for one process.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    def join(cls) -> ProcessGroup:
        """Join the processes that the environment speaks of (``RANK``, ``WORLD_SIZE``); alone where it speaks of none.

        Raises:
            ValueError: the environment is not one of `torchrun`, or the others do not appear.
        """
        rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
        if not 0 <= rank < world:
            raise ValueError(
                f"RANK is {rank} and WORLD_SIZE {world} in the environment; start several processes by torchrun"
            )
        if world == 1:
            return cls()
        if not dist.is_available():
            raise ValueError("this torch is built without torch.distributed: run one process, or install another build")
        try:
            if not dist.is_initialized():
                init_group("gloo", timeout=START)
            return cls(rank, world, dist.new_group(backend="gloo", timeout=WORK))
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"process {rank} of {world} could not meet the others ({error}); start them by torchrun, or unset RANK and "
                "WORLD_SIZE for one process"
            ) from error

    def first(self, work: Callable[[], T]) -> T:
        """Run ``work`` in process 0; its result, or its refusal, goes to all.

        Raises:
            ValueError: a refusal (process 0 raises its own error), or another process died.
        """
        if self.world == 1:
            return work()
        answer: list[Any] = [None, None]
        refusal = None
        if self.rank == 0:
            try:
                answer[0] = work()
            except (ValueError, OSError) as error:
                refusal, answer[1] = error, str(error)
        self._meet(lambda: dist.broadcast_object_list(answer, src=0, group=self.group))
        if refusal is not None:
            raise refusal
        if answer[1] is not None:
            raise ValueError(answer[1])
        return answer[0]

    def wait(self) -> None:
        """Go on when all processes are here.

        Raises:
            ValueError: one of them died.
        """
        if self.world > 1:
            self._meet(lambda: dist.barrier(group=self.group))

    def require_same(self, value: str, what: str) -> None:
        """Refuse to work together on different things.

        Raises:
            ValueError: another process holds another value, or died.
        """
        if self.world == 1:
            return
        values: list[Any] = [None] * self.world
        self._meet(lambda: dist.all_gather_object(values, value, group=self.group))
        others = [number for number, other in enumerate(values) if other != values[0]]
        if others:
            raise ValueError(
                f"processes 0 and {others[0]} of this run differ in {what}; give all of them the same command, model files "
                "and library versions, and a folder that they share"
            )

    def _meet(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ValueError(f"{DIED} ({error})") from error


def pick_device(device: str) -> torch.device:
    """``auto`` is this process's GPU (``LOCAL_RANK``) where there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device, or has none of them.
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
