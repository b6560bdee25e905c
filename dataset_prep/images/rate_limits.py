"""How to ask other people's servers: how many requests at once, how fast, how often again, when to leave a host alone."""

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
MAX_HOLDS = 3  # of one host in a row; the next failure ends the host's part in the run
LEFT_ALONE = "host_left_alone"  # reason of a miss: nothing was asked, because the host has failed or refused too often
NOT_TO_BE_USED = frozenset({"noai", "noimageai"})


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Limits of a download.

    Attributes:
        user_agent: who asks; a way to reach you in it (a page, an address) is good manners.
        connections: requests at once, all hosts together.
        per_host: requests at once to one host.
        per_host_rate: requests a second to one host.
        connect_timeout: seconds for a connection to stand.
        read_timeout: seconds without a byte.
        total_timeout: seconds for one request with its answer.
        retries: further attempts after a failure that may pass.
        backoff: seconds before the first of them; doubled each time, and shortened by up to half, at random but the same for
            the same URL.
        max_retry_after: longest ``Retry-After``, in seconds; a host that asks for more is left alone for this run.
        failures_before_hold: failures of a host in a row before it gets a rest.
        hold: seconds of the first rest; doubled each time.
        max_bytes: longest body.

    Raises:
        ValueError: a value that makes no sense.
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
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be above 0")
        for name in ("retries", "backoff", "max_retry_after", "hold"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be 0 or more")
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", self.user_agent):
            raise ValueError(f"user_agent is {self.user_agent!r}; it is one line of ASCII text that says who asks")


class FetchError(Exception):
    """There is no image for a URL.

    Attributes:
        reason: a word for the manifest, such as ``http_404``.
        transient: it may go better another time.
        attempts: how many were made.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.transient, self.attempts = reason, transient, 0


class Host:
    """Turns at one host.

    Args:
        options: the limits.
        connections: of all hosts together.
    """

    def __init__(self, options: FetchOptions, connections: asyncio.Semaphore) -> None:
        self.closed = False  # left alone until the end of the run
        self._options, self._connections = options, connections
        self._slots = asyncio.Semaphore(options.per_host)
        self._gate = asyncio.Lock()
        self._free_at = self._held_until = 0.0
        self._failures = self._holds = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be sent; the block is that request.

        Raises:
            Missed: the host is left alone for the rest of the run.
        """
        async with self._slots:
            async with self._gate:  # one after the other, so that requests start no faster than the rate
                while True:
                    self._refuse_if_closed()
                    # A host that rests must not sit on a connection that others could use; so first the rest.
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
        """The host is well."""
        self._failures = self._holds = 0

    def failed(self) -> None:
        """The host failed; after several failures in a row it gets a rest, after several rests it is left alone."""
        self._failures += 1
        if self._failures < self._options.failures_before_hold or time.monotonic() < self._held_until:
            return  # requests that were under way when the rest began tell nothing new
        if self._holds == MAX_HOLDS:
            self.closed = True
            return
        self._held_until = time.monotonic() + self._options.hold * 2**self._holds
        self._free_at = max(self._free_at, self._held_until)
        self._holds += 1

    def asked_to_wait(self, seconds: float) -> None:
        """The host said when it wants to be asked again."""
        if seconds > self._options.max_retry_after:
            self.closed = True
        else:
            self._free_at = max(self._free_at, time.monotonic() + seconds)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise FetchError(LEFT_ALONE, transient=True)


def pause(options: FetchOptions, url: str, attempt: int) -> float:
    """Seconds between an attempt (from 1) at a URL and the next; always the same for the same URL."""
    jitter = 0.5 + 0.5 * random.Random(f"{attempt} {url}").random()
    return min(MAX_BACKOFF, options.backoff * 2 ** (attempt - 1)) * jitter


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: a number, or a date.

    Args:
        value: the header, if there is one.
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
    """Whether ``X-Robots-Tag`` headers keep a picture from being used for learning, whichever robot they speak to.

    >>> forbidden(["noindex, NoAI"]), forbidden(["somebot: noimageai"]), forbidden(["noindex"])
    (True, True, False)
    """
    return any(NOT_TO_BE_USED & set(re.split(r"[\s,:]+", value.lower())) for value in robots)
