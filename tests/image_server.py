"""A local web server for tests of the downloader: paths with answers, good and bad, and a record of what was asked."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
CHUNK = 1 << 13
QUIET = logging.Logger("who hangs up is no news", logging.CRITICAL)


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    at: float  # seconds of time.monotonic


class ImageServer:
    """Serves on 127.0.0.1 and localhost, in a thread; used as a context.

    `answers` maps a path to its answers, in the order in which they are given; the last one stays. What has none is a 404.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[Asked] = []
        self.busy, self.most_busy = 0, 0
        self.chunks = 0  # of 8 KiB that `slow` answers have sent
        self.held = False  # they send nothing while this is set
        self.on_chunk: Callable[[], None] = lambda: None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ImageServer:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, *answers: Answer, host: str = "127.0.0.1") -> str:
        """Answers of a path; returns its URL."""
        self.answers[path] = list(answers)
        return self.url(path, host)

    def count(self) -> Counter[str]:
        """Requests a path."""
        return Counter(asked.path for asked in self.asked)

    def slow(self, data: bytes, etag: str = '"v1"', seconds: float = 0.004) -> Answer:
        """`versioned`, in small chunks with pauses between them."""

        async def answer(request: web.Request) -> web.StreamResponse:
            whole = await versioned(data, etag)(request)
            assert isinstance(whole, web.Response)
            body = whole.body
            if not isinstance(body, bytes) or not body:
                return whole
            response = web.StreamResponse(status=whole.status, headers=whole.headers)
            response.content_length = len(body)
            await response.prepare(request)
            for start in range(0, len(body), CHUNK):
                await response.write(body[start : start + CHUNK])
                self.chunks += 1
                self.on_chunk()
                await asyncio.sleep(seconds)
                while self.held:
                    await asyncio.sleep(seconds)
            return response

        return answer

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_route("GET", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, logger=QUIET)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(Asked(request.raw_path, dict(request.headers), time.monotonic()))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            answers = self.answers.get(request.raw_path)
            if not answers:
                return web.Response(status=404)
            return await (answers.pop(0) if len(answers) > 1 else answers[0])(request)
        finally:
            self.busy -= 1


def body(data: bytes, **headers: str) -> Answer:
    """200 with these bytes, called a JPEG unless said otherwise; ``X_Robots_Tag="noai"`` is a header."""

    async def answer(request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=data, headers={"Content-Type": "image/jpeg", **named})

    return answer


def status(code: int, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def versioned(data: bytes, etag: str = '"v1"', **headers: str) -> Answer:
    """A file as web servers serve it: with If-None-Match, and with Range when If-Range fits."""

    async def answer(request: web.Request) -> web.StreamResponse:
        named = {"ETag": etag, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=named)
        if "Range" in request.headers and request.headers.get("If-Range") in named.values():
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return web.Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
            named["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return web.Response(status=206, body=data[start:], headers=named)
        return web.Response(body=data, headers=named)

    return answer


def broken(data: bytes, sent: int, declared: int | None = None, **headers: str) -> Answer:
    """Says that more bytes come than do, and hangs up."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in headers.items()})
        response.content_length = len(data) if declared is None else declared
        await response.prepare(request)
        await response.write(data[:sent])
        assert request.transport is not None
        request.transport.close()  # after what was written
        return response

    return answer


def endless(chunk: bytes = bytes(1 << 16)) -> Answer:
    """Bytes without a declared length, until nobody reads any more."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
        await response.prepare(request)
        while True:
            await response.write(chunk)

    return answer


async def silent(request: web.Request) -> web.StreamResponse:
    """No answer at all."""
    await asyncio.Event().wait()
    raise AssertionError
