"""One URL to one body on disk, politely: turns at its host, redirects, retries, and going on where a transfer broke off."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

import aiohttp
from yarl import URL

from dataset_prep.images.partial_files import Origin, PartialFile
from dataset_prep.images.rate_limits import LEFT_ALONE, FetchError, FetchOptions, Host, forbidden, pause, retry_after

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAY_PASS = frozenset({408, 425, 429})  # and whatever is 500 or more
CHUNK = 1 << 16
# What a failed exchange is called in the manifest; the first class that fits. All of these may pass.
FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (asyncio.TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "host_not_found"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientPayloadError, "broken_transfer"),
    (aiohttp.ClientResponseError, "bad_answer"),
    (aiohttp.ClientError, "connection"),
    (ConnectionError, "connection"),
)
NO_ADDRESS = (ValueError, IndexError)  # raised on text that was never an address: aiohttp, yarl 1.25 and the idna codec
TROUBLE = tuple(kind for kind, _ in FAILURES)


@dataclass(frozen=True)
class Known:
    """The answer that is there already, for asking whether it still holds."""

    etag: str | None
    last_modified: str | None

    def headers(self) -> dict[str, str]:
        given = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class _Request:
    """What stays the same over the redirects of one attempt."""

    url: str
    part: PartialFile
    known: Known | None
    attempt: int


class Fetcher:
    """Fetches bodies; used as ``async with Fetcher(options) as fetcher``."""

    def __init__(self, options: FetchOptions) -> None:
        self.options = options
        self._connections = asyncio.Semaphore(options.connections)
        self._hosts: dict[str, Host] = {}
        self._under_way: dict[str, asyncio.Event] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the turns limit
            timeout=aiohttp.ClientTimeout(
                total=options.total_timeout, sock_connect=options.connect_timeout, sock_read=options.read_timeout
            ),
            headers={
                "User-Agent": options.user_agent,
                "Accept": "image/jpeg,image/png,image/webp,image/gif,*/*;q=0.5",
                "Accept-Encoding": "identity",  # lengths and ranges then count the bytes of the image
            },
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,  # proxies of a cluster
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str, part: PartialFile, known: Known | None = None) -> bool:
        """Bring the body of a URL to ``part.full``.

        Args:
            url: http or https.
            part: where the body goes; goes on from what is there where the server can.
            known: of the body that the caller has; then only a changed one is brought.

        Returns:
            False when the known body still holds.

        Raises:
            Missed: there is no body, and why.
            OSError: the disk refused.
        """
        async with self._alone(url):
            for attempt in range(1, self.options.retries + 2):
                try:
                    return await self._follow(_Request(url, part, known, attempt))
                except FetchError as miss:
                    miss.attempts = attempt
                    left_alone = miss.reason == LEFT_ALONE or self._host(_parse(url)).closed
                    if not miss.transient or left_alone or attempt > self.options.retries:
                        raise
                    await asyncio.sleep(pause(self.options, url, attempt))
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def _alone(self, url: str) -> AsyncIterator[None]:
        """One request for a URL at a time, however many items list it."""
        while other := self._under_way.get(url):
            await other.wait()
        self._under_way[url] = asyncio.Event()
        try:
            yield
        finally:
            self._under_way.pop(url).set()

    def _host(self, url: URL) -> Host:
        name = (url.host or "").lower()
        if name not in self._hosts:
            self._hosts[name] = Host(self.options, self._connections)
        return self._hosts[name]

    async def _follow(self, request: _Request) -> bool:
        """One attempt: the URL, and where it redirects to. Each hop waits for its own host's turn."""
        at = _parse(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._exchange(at, request)
            if isinstance(answer, bool):
                return answer
            at = answer
        raise FetchError("too_many_redirects")

    async def _exchange(self, at: URL, request: _Request) -> bool | URL:
        """One request: whether a body came, or where to ask instead."""
        host = self._host(at)
        headers = request.known.headers() if request.known else {}
        come = None if headers else request.part.come(request.url)
        if come:
            origin, size = come
            headers = {"Range": f"bytes={size}-", "If-Range": origin.validator() or ""}
        async with host.turn():
            try:
                async with self._session.get(at, headers=headers, allow_redirects=False) as response:
                    answer = await self._receive(response, request, come)
            except NO_ADDRESS:  # a host name that cannot be one
                raise FetchError("bad_url") from None
            except TROUBLE as error:
                host.failed()
                reason = next(reason for kind, reason in FAILURES if isinstance(error, kind))
                raise FetchError(reason, transient=True) from error
            except FetchError as miss:
                host.failed() if miss.transient else host.answered()
                raise
        host.answered()
        return answer

    async def _receive(
        self, response: aiohttp.ClientResponse, request: _Request, come: tuple[Origin, int] | None
    ) -> bool | URL:
        """Look at an answer and bring its body to disk."""
        status, part = response.status, request.part
        if forbidden(response.headers.getall("X-Robots-Tag", [])):
            raise FetchError("noai")
        if status in REDIRECTS and "Location" in response.headers:
            return _parse(response.headers["Location"], response.url)
        if status == 304 and request.known:
            return False
        if status in (206, 416) and come:
            return await self._continue(response, part, *come)
        if status != 200:
            wait = retry_after(response.headers.get("Retry-After"), time.time()) if status in (429, 503) else None
            if wait is not None:
                self._host(response.url).asked_to_wait(wait)
            raise FetchError(f"http_{status}", transient=status in MAY_PASS or status >= 500)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FetchError("content_encoding")
        etag, modified = (_plain(response.headers.get(name)) for name in ("ETag", "Last-Modified"))
        with part.begin(Origin(request.url, etag, modified, request.attempt)) as handle:
            await self._stream(response, handle, 0)
        part.end()
        return True

    async def _continue(self, response: aiohttp.ClientResponse, part: PartialFile, origin: Origin, size: int) -> bool:
        """The rest of a body, or word that nothing is missing."""
        if response.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{size}":
            part.end()  # all had come when the program was stopped
            return True
        rest = re.match(rf"bytes {size}-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        whole = rest is not None and int(rest[1]) + 1 == int(rest[2])
        if not whole or response.headers.get("ETag", origin.etag) != origin.etag:
            part.drop()
            raise FetchError("range", transient=True)  # the next attempt asks for all of it
        with part.proceed() as handle:
            await self._stream(response, handle, size)
        part.end()
        return True

    async def _stream(self, response: aiohttp.ClientResponse, handle: BinaryIO, size: int) -> None:
        """Bytes to disk as they come, no more than allowed; `size` of them are there already."""
        if size + (response.content_length or 0) > self.options.max_bytes:
            raise FetchError("too_large")
        async for chunk in response.content.iter_chunked(CHUNK):
            size += len(chunk)
            if size > self.options.max_bytes:
                raise FetchError("too_large")
            handle.write(chunk)
            handle.flush()  # what has come must be there after a kill


def _plain(header: str | None) -> str | None:
    """A header that can be written down and sent back; servers send any bytes."""
    return header if header and header.isascii() and header.isprintable() else None


def _parse(text: str, base: URL | None = None) -> URL:
    """A http(s) URL, where possible with its escapes as they are; `base` is set for redirects.

    Raises:
        Missed: it is none.
    """
    try:
        url = URL(text, encoded=re.fullmatch(r"[!-~]+", text) is not None)
        url = base.join(url) if base else url
        if url.scheme in ("http", "https") and url.host and url.port:
            return url
    except NO_ADDRESS:
        pass
    raise FetchError("bad_redirect" if base else "bad_url")
