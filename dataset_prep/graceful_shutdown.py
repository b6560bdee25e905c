"""End long asynchronous work in good order on Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any


def run_until_signal(main: Coroutine[Any, Any, None]) -> int | None:
    """Run a coroutine to its end, or cancel it on Ctrl-C or SIGTERM.

    Returns:
        The number of the signal that stopped it, or ``None``.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
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
