"""Processes that are killed, and processes that work together, for the tests of the encoders."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Lines that survive the process that wrote them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: object) -> None:
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(f"{line}\n")

    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []


def start(work: Callable[[], object], **environment: object) -> Any:
    """A forked process that does the work; forked, because importing everything again takes seconds."""

    def inside() -> None:
        os.environ.update({name: str(value) for name, value in environment.items()})
        work()

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    return process


def end(process: Any) -> int:
    """Exit code, negative for a signal."""
    process.join(60)
    assert process.exitcode is not None, "still at work"
    return process.exitcode


def run(work: Callable[[], object]) -> int:
    """Do the work in another process; its exit code, negative for a signal."""
    return end(start(work))


def together(*works: Callable[[], object]) -> list[Any]:
    """One process a work, knowing of each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": len(works), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(work, RANK=rank, **shared) for rank, work in enumerate(works)]


def kill_me(*_: object, **__: object) -> Any:
    """What a machine that loses power does."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, except that the process dies when it is called for the given time."""
    calls = iter(range(1, call))

    def wrapper(*args: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            kill_me()
        return function(*args, **options)

    return wrapper
