"""Fetch the body of one URL to disk: rate limits per host, redirects, retries, and resuming of interrupted transfers."""

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
from dataset_prep.images.rate_limits import HOST_ABANDONED, FetchError, FetchOptions, Host, forbidden, pause, retry_after

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRANSIENT = frozenset({408, 425, 429})  # and all from 500 on
CHUNK = 1 << 16
# Reason of a failed exchange in the manifest, by the first class that fits. All of these are transient.
FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (asyncio.TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "host_not_found"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientPayloadError, "broken_transfer"),
    (aiohttp.ClientResponseError, "bad_answer"),
    (aiohttp.ClientError, "connection"),
    (ConnectionError, "connection"),
)
INVALID_URL = (ValueError, IndexError)  # raised for text that is no address by aiohttp, yarl 1.25 and the idna codec
FAILURE_TYPES = tuple(kind for kind, _ in FAILURES)


@dataclass(frozen=True)
class CachedResponse:
    """Validators of a body that is on disk, to ask the server whether it has changed."""

    etag: str | None
    last_modified: str | None

    def headers(self) -> dict[str, str]:
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}


@dataclass(frozen=True)
class _Request:
    """Data of one attempt that redirects do not change."""

    url: str
    part: PartialFile
    cached: CachedResponse | None
    attempt: int


class Fetcher:
    """Fetch bodies; used as ``async with Fetcher(options) as fetcher``."""

    def __init__(self, options: FetchOptions) -> None:
        self.options = options
        self._connections = asyncio.Semaphore(options.connections)
        self._hosts: dict[str, Host] = {}
        self._active: dict[str, asyncio.Event] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # Host.turn() limits the connections
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
            trust_env=True,  # use the proxies of a cluster
        )

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def fetch(self, url: str, part: PartialFile, cached: CachedResponse | None = None) -> bool:
        """Fetch the body of a URL to ``part.full``.

        Args:
            url: http or https URL.
            part: file of the body; an interrupted transfer is resumed if the server supports it.
            cached: validators of the body that the caller has; then only a changed body is fetched.

        Returns:
            False if the cached body is still valid.

        Raises:
            FetchError: there is no body, with the reason.
            OSError: the disk failed.
        """
        async with self._one_at_a_time(url):
            for attempt in range(1, self.options.retries + 2):
                try:
                    return await self._follow(_Request(url, part, cached, attempt))
                except FetchError as miss:
                    miss.attempts = attempt
                    abandoned = miss.reason == HOST_ABANDONED or self._host(_parse(url)).closed
                    if not miss.transient or abandoned or attempt > self.options.retries:
                        raise
                    await asyncio.sleep(pause(self.options, url, attempt))
        raise AssertionError("the last attempt returns or raises")

    @asynccontextmanager
    async def _one_at_a_time(self, url: str) -> AsyncIterator[None]:
        """Allow one request for a URL at a time, because several items may list it."""
        while other := self._active.get(url):
            await other.wait()
        self._active[url] = asyncio.Event()
        try:
            yield
        finally:
            self._active.pop(url).set()

    def _host(self, url: URL) -> Host:
        name = (url.host or "").lower()
        if name not in self._hosts:
            self._hosts[name] = Host(self.options, self._connections)
        return self._hosts[name]

    async def _follow(self, request: _Request) -> bool:
        """Make one attempt: request the URL and follow its redirects; each hop waits for a turn at its own host."""
        location = _parse(request.url)
        for _ in range(MAX_REDIRECTS + 1):
            result = await self._exchange(location, request)
            if isinstance(result, bool):
                return result
            location = result
        raise FetchError("too_many_redirects")

    async def _exchange(self, location: URL, request: _Request) -> bool | URL:
        """Send one request; return whether a body was received, or the redirect's target."""
        host = self._host(location)
        headers = request.cached.headers() if request.cached else {}
        progress = None if headers else request.part.progress(request.url)
        if progress:
            origin, size = progress
            headers = {"Range": f"bytes={size}-", "If-Range": origin.validator() or ""}
        async with host.turn():
            try:
                async with self._session.get(location, headers=headers, allow_redirects=False) as response:
                    result = await self._receive(response, request, progress)
            except INVALID_URL:  # an impossible host name
                raise FetchError("bad_url") from None
            except FAILURE_TYPES as error:
                host.failed()
                reason = next(reason for kind, reason in FAILURES if isinstance(error, kind))
                raise FetchError(reason, transient=True) from error
            except FetchError as miss:
                host.failed() if miss.transient else host.answered()
                raise
        host.answered()
        return result

    async def _receive(
        self, response: aiohttp.ClientResponse, request: _Request, progress: tuple[Origin, int] | None
    ) -> bool | URL:
        """Interpret a response and write its body to disk."""
        status, part = response.status, request.part
        if forbidden(response.headers.getall("X-Robots-Tag", [])):
            raise FetchError("noai")
        if status in REDIRECTS and "Location" in response.headers:
            return _parse(response.headers["Location"], response.url)
        if status == 304 and request.cached:
            return False
        if status in (206, 416) and progress:
            return await self._continue(response, part, *progress)
        if status != 200:
            wait = retry_after(response.headers.get("Retry-After"), time.time()) if status in (429, 503) else None
            if wait is not None:
                self._host(response.url).asked_to_wait(wait)
            raise FetchError(f"http_{status}", transient=status in TRANSIENT or status >= 500)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FetchError("content_encoding")
        etag, modified = (_plain(response.headers.get(name)) for name in ("ETag", "Last-Modified"))
        with part.begin(Origin(request.url, etag, modified, request.attempt)) as handle:
            await self._stream(response, handle, 0)
        part.complete()
        return True

    async def _continue(self, response: aiohttp.ClientResponse, part: PartialFile, origin: Origin, size: int) -> bool:
        """Receive the rest of a body, or the confirmation that nothing is missing."""
        if response.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{size}":
            part.complete()  # the body was complete when the program was stopped
            return True
        rest = re.match(rf"bytes {size}-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        reaches_end = rest is not None and int(rest[1]) + 1 == int(rest[2])
        if not reaches_end or response.headers.get("ETag", origin.etag) != origin.etag:
            part.remove()
            raise FetchError("range", transient=True)  # the next attempt requests the whole body
        with part.resume() as handle:
            await self._stream(response, handle, size)
        part.complete()
        return True

    async def _stream(self, response: aiohttp.ClientResponse, handle: BinaryIO, size: int) -> None:
        """Write bytes to disk as they arrive, up to the limit; `size` bytes are on disk already."""
        if size + (response.content_length or 0) > self.options.max_bytes:
            raise FetchError("too_large")
        async for chunk in response.content.iter_chunked(CHUNK):
            size += len(chunk)
            if size > self.options.max_bytes:
                raise FetchError("too_large")
            handle.write(chunk)
            handle.flush()  # received bytes must survive a kill


def _plain(header: str | None) -> str | None:
    """Return a header if it can be stored and sent back; servers send any bytes."""
    return header if header and header.isascii() and header.isprintable() else None


def _parse(text: str, base: URL | None = None) -> URL:
    """Parse an http(s) URL, if possible without changing its escapes; `base` is set for redirects.

    Raises:
        FetchError: the text is not such a URL.
    """
    try:
        url = URL(text, encoded=re.fullmatch(r"[!-~]+", text) is not None)
        url = base.join(url) if base else url
        if url.scheme in ("http", "https") and url.host and url.port:
            return url
    except INVALID_URL:
        pass
    raise FetchError("bad_redirect" if base else "bad_url")
