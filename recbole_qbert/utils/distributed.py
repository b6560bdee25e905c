"""Several processes on one job: ranks, barriers, process groups, and RecBole's settings under torchrun."""

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
    """Return the number of this process among all of the job; 0 if it is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", 0))


def is_distributed() -> bool:
    """Return whether there is a process group."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process run the block before the others, which then load what it has built.

    If the first process fails, the launcher (torchrun, ``mp.spawn``) ends those that wait.
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
    """Open the process group of a job that torchrun started, with gloo, which CPUs and GPUs support; do so once."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_distributed():
        init_group("gloo", init_method="env://", timeout=GROUP_TIMEOUT)


def init_group(backend: str, **settings: Any) -> None:
    """Open a process group that is closed when the interpreter ends.

    Args:
        backend: ``gloo`` or ``nccl``.
        settings: further arguments of ``torch.distributed.init_process_group``.
    """
    distributed.init_process_group(backend, **settings)
    close_group_at_exit()


def close_group_at_exit() -> None:
    """Close the process group before the interpreter is torn down.

    Threads of gloo that still run at that time end the process with ``terminate called without an active exception``. It
    happened in one run of eight, after all work was done.
    """
    atexit.unregister(_close)
    atexit.register(_close)


def _close() -> None:
    if is_distributed():
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every process has called this."""
    if is_distributed():
        distributed.barrier()


def torchrun_settings() -> dict[str, Any]:
    """Return RecBole's settings for a process that torchrun started; none for other processes.

    RecBole numbers processes by ``local_rank + offset`` and needs an address. Both come from torchrun's environment.
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
