"""Long work that others may stop: one process at a time in a folder, and an orderly end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def exclusive(folder: Path, work: str) -> Iterator[None]:
    """Two processes at the same work in one folder would write over each other's parts.

    Args:
        folder: is locked.
        work: what to call it in the error of the second process.

    Raises:
        ValueError: another process is at it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"another {work} {folder} is under way; wait for it, or stop it") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def until_signal(main: Coroutine[Any, Any, None]) -> int | None:
    """Run to the end, or until Ctrl-C or SIGTERM; the number of the signal, if one came."""
    if threading.current_thread() is not threading.main_thread():  # signals are another's affair
        asyncio.run(main)
        return None
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    async def stoppable() -> None:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        with suppress(NotImplementedError):  # Windows
            for number in handlers:
                asyncio.get_running_loop().add_signal_handler(number, stop, number)
        await main

    try:
        asyncio.run(stoppable())
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return received[0] if received else None
