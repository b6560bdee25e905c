"""Calls of compiled kernels: which tensors they can take, random numbers of dropout, and threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

HASH_RANGE = 1 << 32  # range of the hash of an element's position, by which a kernel drops the element or not
MIN_WORK = 1 << 15  # elements of work from which on a thread of its own pays off
_switched_off = False


def can_use_kernels(values: Tensor) -> bool:
    """Tell whether kernels can read a tensor: it is on a CPU and of a type that numpy has."""
    return not _switched_off and values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Use torch instead of kernels inside the block, as on a GPU: for comparison, and to count operations."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def dropout_state(rate: float) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Draw what a kernel needs for dropout: the hash below which an element is dropped, and two seeds.

    The seeds come from torch's global generator; with a rate of 0, none are drawn.
    """
    limit = round(rate * HASH_RANGE)
    low, high = torch.randint(HASH_RANGE, (2,)).tolist() if limit else (0, 0)
    return np.uint64(limit), np.uint64(low), np.uint64(high)


def split_work(end: np.ndarray) -> list[int]:
    """Split rows into runs of about the same work, one for each of torch's threads that pays off.

    Args:
        end: ``[R]`` cumulative work of the rows.

    Returns:
        The bounds of the runs, one more than runs; the first is 0 and the last ``R``.
    """
    total = int(end[-1]) if len(end) else 0
    runs = max(1, min(torch.get_num_threads(), total // MIN_WORK))
    inner = np.searchsorted(end, [total * run // runs for run in range(1, runs)], side="right")
    return [0, *inner.tolist(), len(end)]


def call(
    kernel: Callable[..., None], arguments: Sequence[Any], bounds: Sequence[int], own: np.ndarray | None = None
) -> None:
    """Call a kernel for each run of rows, in parallel threads where there are several runs.

    Args:
        kernel: takes ``arguments``, the run's part of ``own`` if it is not None, and the first and last row of the run.
        arguments: the same for all runs.
        bounds: what ``split_work`` returned.
        own: ``[runs, ...]`` arrays that each run writes separately.
    """
    calls = [
        (*arguments, *([] if own is None else [own[run]]), first, last) for run, (first, last) in enumerate(pairwise(bounds))
    ]
    others = [_pool(os.getpid()).submit(kernel, *each) for each in calls[1:]]
    kernel(*calls[0])
    for other in others:
        other.result()


@lru_cache(1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of this process: after a fork, those of the parent do not exist."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"kernels-{process}")
