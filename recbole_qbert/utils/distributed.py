"""Several processes on one job: who is first, who writes, and how a command started by torchrun says so to RecBole."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed

# The first process may build features and IDs for hours while the others wait.
GROUP_TIMEOUT = timedelta(hours=24)
# A launcher looks at its processes every few milliseconds, and ends the others when one has failed.
REPORT_SECONDS = 10


def rank() -> int:
    """Number of this process among all of the job; 0 when it is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", 0))


def is_distributed() -> bool:
    """Whether there is a process group."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the block; the others wait, then run it too, and find what it has built.

    If the first one fails the launcher (torchrun, ``mp.spawn``) ends those that wait.
    """
    if is_distributed() and rank() != 0:
        try:
            distributed.barrier()
        except RuntimeError:  # the first process has failed: give the launcher time to report its error, not this one
            time.sleep(REPORT_SECONDS)
            raise
    yield
    if is_distributed() and rank() == 0:
        distributed.barrier()


def join_torchrun_group() -> None:
    """Open the process group of a job that torchrun started, if it is not open yet: gloo, which CPU and GPU runs can use."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_distributed():
        init_group("gloo", init_method="env://", timeout=GROUP_TIMEOUT)


def init_group(backend: str, **settings: Any) -> None:
    """``torch.distributed.init_process_group``, and the group is closed when the interpreter ends."""
    distributed.init_process_group(backend, **settings)
    close_group_at_exit()


def close_group_at_exit() -> None:
    """Close the process group before the interpreter is torn down.

    Threads of gloo that still run then take the whole process with them (``terminate called without an active exception``):
    seen in one run of eight, after all its work was done.
    """
    atexit.unregister(_close)
    atexit.register(_close)


def _close() -> None:
    if is_distributed():
        distributed.destroy_process_group()


def barrier() -> None:
    """Go on when every process is here."""
    if is_distributed():
        distributed.barrier()


def torchrun_settings() -> dict[str, Any]:
    """RecBole's settings for a process that torchrun started; none otherwise.

    RecBole numbers processes by ``local_rank + offset`` and wants an address, which torchrun's environment has.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    local, number = int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"])
    return {
        "local_rank": local,
        "offset": number - local,
        "nproc": int(os.environ["LOCAL_WORLD_SIZE"]),
        "world_size": int(os.environ["WORLD_SIZE"]),
        "ip": os.environ["MASTER_ADDR"],
        "port": os.environ["MASTER_PORT"],
    }
