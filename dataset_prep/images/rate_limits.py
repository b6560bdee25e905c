"""Limit the requests to a server: concurrency, rate, retries, and when to stop asking a host."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

MAX_BACKOFF = 60.0  # seconds between two attempts at one URL
MAX_HOLDS = 3  # consecutive rests of one host; after the next failure the run sends it no more requests
HOST_ABANDONED = "host_left_alone"  # reason of a miss: no request was sent, because the host had failed too often
OPT_OUT_TAGS = frozenset({"noai", "noimageai"})


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Limits of a download.

    Attributes:
        user_agent: identity of the client; include contact information, such as a page or an address.
        connections: concurrent requests to all hosts.
        per_host: concurrent requests to one host.
        per_host_rate: requests per second to one host.
        connect_timeout: seconds to open a connection.
        read_timeout: seconds without a byte.
        total_timeout: seconds for one request with its response.
        retries: further attempts after a transient failure.
        backoff: seconds before the first retry; doubled for each further one, and shortened by up to half, at random but
            always equally for the same URL.
        max_retry_after: longest accepted ``Retry-After``, in seconds; a host that asks for more gets no more requests.
        failures_before_hold: consecutive failures of a host before it gets a rest.
        hold: seconds of the first rest; doubled for each further one.
        max_bytes: longest accepted body.

    Raises:
        ValueError: a value is out of range.
    """

    user_agent: str = "recbole-qbert (pictures of products, for research)"
    connections: int = 16
    per_host: int = 4
    per_host_rate: float = 10.0
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    total_timeout: float = 300.0
    retries: int = 4
    backoff: float = 1.0
    max_retry_after: float = 120.0
    failures_before_hold: int = 10
    hold: float = 30.0
    max_bytes: int = 20 << 20

    def __post_init__(self) -> None:
        positive = (
            "connections per_host per_host_rate connect_timeout read_timeout total_timeout failures_before_hold max_bytes"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be greater than 0")
        for name in ("retries", "backoff", "max_retry_after", "hold"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be at least 0")
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", self.user_agent):
            raise ValueError(f"user_agent is {self.user_agent!r}; it must be one line of ASCII text")


class FetchError(Exception):
    """A URL gave no image.

    Attributes:
        reason: a word for the manifest, such as ``http_404``.
        transient: a later attempt may succeed.
        attempts: number of attempts made.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.transient, self.attempts = reason, transient, 0


class Host:
    """Limit the requests to one host.

    Args:
        options: the limits.
        connections: semaphore of the connections to all hosts.
    """

    def __init__(self, options: FetchOptions, connections: asyncio.Semaphore) -> None:
        self.closed = False  # gets no more requests in this run
        self._options, self._connections = options, connections
        self._slots = asyncio.Semaphore(options.per_host)
        self._gate = asyncio.Lock()
        self._free_at = self._held_until = 0.0
        self._failures = self._holds = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be sent; the block sends it.

        Raises:
            FetchError: the host gets no more requests in this run.
        """
        async with self._slots:
            async with self._gate:  # one task at a time, so that requests start no faster than the rate
                while True:
                    self._refuse_if_closed()
                    # First wait for the rest of the host: meanwhile others can use the connection.
                    await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
                    await self._connections.acquire()
                    if self._free_at <= time.monotonic() and not self.closed:
                        break
                    self._connections.release()
                self._free_at = time.monotonic() + 1 / self._options.per_host_rate
            try:
                yield
            finally:
                self._connections.release()

    def answered(self) -> None:
        """Record a success: reset the counts of failures and rests."""
        self._failures = self._holds = 0

    def failed(self) -> None:
        """Record a failure: several in a row give the host a rest, and several rests close it."""
        self._failures += 1
        if self._failures < self._options.failures_before_hold or time.monotonic() < self._held_until:
            return  # requests that were active when the rest began are no new evidence
        if self._holds == MAX_HOLDS:
            self.closed = True
            return
        self._held_until = time.monotonic() + self._options.hold * 2**self._holds
        self._free_at = max(self._free_at, self._held_until)
        self._holds += 1

    def asked_to_wait(self, seconds: float) -> None:
        """Record a ``Retry-After`` of the host."""
        if seconds > self._options.max_retry_after:
            self.closed = True
        else:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise FetchError(HOST_ABANDONED, transient=True)


def pause(options: FetchOptions, url: str, attempt: int) -> float:
    """Compute the seconds to wait before the next attempt; always the same for the same URL.

    Args:
        options: the limits.
        url: URL of the attempt.
        attempt: number of the failed attempt, from 1.
    """
    jitter = 0.5 + 0.5 * random.Random(f"{attempt} {url}").random()
    return min(MAX_BACKOFF, options.backoff * 2 ** (attempt - 1)) * jitter


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header (a number or a date) asks to wait.

    Args:
        value: the header, or None.
        now: unix seconds.

    >>> retry_after("120", 0.0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 15.0), retry_after("soon", 0.0)
    (120.0, 45.0, None)
    """
    value = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def forbidden(robots: list[str]) -> bool:
    """Return whether ``X-Robots-Tag`` headers forbid machine learning on a picture, for any robot.

    >>> forbidden(["noindex, NoAI"]), forbidden(["somebot: noimageai"]), forbidden(["noindex"])
    (True, True, False)
    """
    return any(OPT_OUT_TAGS & set(re.split(r"[\s,:]+", value.lower())) for value in robots)
