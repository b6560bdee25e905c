"""Pictures of a data set's items, from the URLs in its ``.item`` file.

`download` reads ``X.item`` (``item_id:token``, ``image_urls:token_seq``) and leaves, in the same folder::

    images/<item>/<n>.jpg ...   image n of the item's list, numbered 000, 001, ...; the ending says what the bytes are
    images.jsonl                one row an image: where it is, or why there is none (image_manifest.py)
    images.json                 the counts; there when a run came to its end
    images.parts/               bodies under way, and parts of those that may still come

A picture belongs to the item that lists its URL and to no other: what cannot be had is a miss with its reason. The same
command again fetches only what is not there: it goes on with parts, tries misses that may pass, and leaves the others.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL import __version__ as pillow_version
from tqdm import tqdm

from dataset_prep.graceful_shutdown import run_until_signal
from dataset_prep.images import image_files
from dataset_prep.images.image_lists import read_items, survey
from dataset_prep.images.image_manifest import NO_ROW, Manifest, Row, opened
from dataset_prep.images.partial_files import PartialFile
from dataset_prep.images.rate_limits import FetchError, FetchOptions
from recbole_qbert.utils.io import file_lock, write_json

if TYPE_CHECKING:
    from dataset_prep.images.fetching import Fetcher

MANIFEST, SUMMARY = "images.jsonl", "images.json"
WAITING = 1000  # images that wait for their turn; so many that a slow host does not keep the others from theirs
LOOKED_AT = 256  # images that are there already, between two looks at what the network brought


@dataclass(frozen=True, kw_only=True)
class Options(FetchOptions):
    """How to fetch (`FetchOptions`) and what to keep.

    Attributes:
        max_images: of an item, the first of its list; None for all.
        max_side: longest side kept, in pixels; larger pictures are shrunk. None keeps them as they are.
        max_pixels: width x height up to which a picture is decoded.
        decoders: threads that decode; each holds one decoded picture.
        retry_missing: also try misses again that are not expected to pass.
        revalidate: ask for what is there whether it has changed. Nothing is lost where there is no good new picture.

    Raises:
        ValueError: a value that makes no sense.
    """

    max_images: int | None = None
    max_side: int | None = None
    max_pixels: int = 50_000_000
    decoders: int = 2
    retry_missing: bool = False
    revalidate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_images", "max_side", "max_pixels", "decoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")


@dataclass(frozen=True)
class ImagesReport:
    """What there is after a run.

    Attributes:
        dataset: its name.
        items: rows of the ``.item`` file.
        items_with_image: of these, with one image at least.
        images: rows of the manifest.
        ok: of these, on disk.
        bytes: of these.
        misses: reason -> how many.
        transient: of the misses, those that the same command tries again.
        fetched: images stored by this run; not in ``images.json``.
        seconds: this run took; not in ``images.json``.
    """

    dataset: str
    items: int = 0
    items_with_image: int = 0
    images: int = 0
    ok: int = 0
    bytes: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    transient: int = 0
    fetched: int = 0
    seconds: float = 0.0


POLITE = Options()


def download(folder: Path, dataset: str, *, options: Options = POLITE, progress: bool = True) -> ImagesReport:
    """Fetch the pictures of a data set; see the module.

    Ctrl-C and SIGTERM end it in good order, a kill at any moment loses nothing that is complete.

    Args:
        folder: where ``<dataset>.item`` lies and everything is written.
        dataset: its name.
        options: limits and sizes.
        progress: show a bar.

    Raises:
        FileNotFoundError: there is no ``.item`` file.
        ValueError: it cannot be read, lists no URLs or an item twice; images are there with another ``max_side``; the disk
            refuses; another download runs here; aiohttp is not installed.
    """
    started = time.monotonic()
    if importlib.util.find_spec("aiohttp") is None:
        raise ValueError("pictures are fetched with aiohttp, which is not installed: pip install 'recbole-qbert[images]'")
    source = folder / f"{dataset}.item"
    expected = survey(source, options.max_images)
    try:
        with file_lock(folder, wait=False, work="download into"), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # their pixels are counted here
            (folder / SUMMARY).unlink(missing_ok=True)  # an interruption from here on leaves none
            with tqdm(total=expected, unit="image", desc=dataset, disable=not progress) as bar:
                stopped, fetched = _fetch(folder, source, options, bar)
            if stopped is None:
                return _finish(folder, source, options, ImagesReport(dataset, fetched=fetched), started)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{folder}: {error}. What is there is kept; make room, and run the same again") from error
    if stopped == signal.SIGTERM:
        signal.signal(stopped, signal.SIG_DFL)  # ray, which RecBole loads, turns it into an exit code
    signal.raise_signal(stopped)  # as if nobody had caught it
    raise KeyboardInterrupt


@dataclass(frozen=True)
class _Image:
    """One URL of an item; `before` is its row so far, of this URL or an older one."""

    item: str
    n: int
    url: str
    before: Row | None


class _Run:
    """One run over the images of a data set."""

    def __init__(self, folder: Path, source: Path, options: Options, manifest: Manifest, bar: tqdm) -> None:
        self.fetched = 0
        self._options, self._manifest, self._bar = options, manifest, bar
        self._images, self._parts = folder / "images", folder / "images.parts"
        self._looked_at = 0
        self._unfinished: set[Path] = set()
        self._listed = self._each_listed(source)
        for path in (self._images, self._parts):
            path.mkdir(exist_ok=True)

    async def all(self) -> None:
        """Settle every image of the file; as many wait at a time as there are workers."""
        from dataset_prep.images.fetching import Fetcher

        with ThreadPoolExecutor(self._options.decoders) as pool:
            async with Fetcher(self._options) as fetcher:
                workers = [asyncio.create_task(self._work(fetcher, pool)) for _ in range(WAITING)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)
        for path in set(self._parts.iterdir()) - self._unfinished:  # left by a kill between two steps
            path.unlink()
        if not self._unfinished:
            self._parts.rmdir()

    def _each_listed(self, source: Path) -> Iterator[_Image]:
        for _, item, urls in read_items(source):
            for n, url in enumerate(urls[: self._options.max_images]):
                yield _Image(item, n, url, self._manifest.find(item, n))
            n = len(urls)
            while row := self._manifest.find(item, n):  # the list was longer once
                self._remove(row)
                n += 1

    async def _work(self, fetcher: Fetcher, pool: ThreadPoolExecutor) -> None:
        for image in self._listed:
            row = image.before if image.before and image.before["url"] == image.url else None
            there = row is not None and self._is_there(row)
            if (there and not self._options.revalidate) or (row and self._is_given_up(row)):
                self._looked_at += 1
                if self._looked_at % LOOKED_AT == 0:
                    await asyncio.sleep(0)
            else:
                await self._settle(image, row if there else None, fetcher, pool)
            self._bar.update()

    def _is_there(self, row: Row) -> bool:
        """Whether a row is of a picture, and that lies where it should."""
        if row["status"] != "ok":
            return False
        if row["max_side"] != self._options.max_side:
            raise ValueError(
                f"{self._images / row['file']} was kept with max_side {row['max_side']}, and now it is "
                f"{self._options.max_side}; give the same again, or remove {self._images} and {self._manifest.path}"
            )
        try:
            return (self._images / row["file"]).stat().st_size == row["bytes"]
        except FileNotFoundError:
            return False

    def _is_given_up(self, row: Row) -> bool:
        return row["status"] == "miss" and not row["transient"] and not self._options.retry_missing

    async def _settle(self, image: _Image, there: Row | None, fetcher: Fetcher, pool: ThreadPoolExecutor) -> None:
        """Bring one image to disk, or write down why not; `there` is the row of a good picture that is there already."""
        from dataset_prep.images.fetching import Known

        part = PartialFile(self._parts, image.item, image.n)
        row = NO_ROW | {"item": image.item, "n": image.n, "url": image.url}
        try:
            if not image_files.can_name_folder(image.item):
                raise FetchError("unsafe_item_id")
            if part.whole(image.url) is None:
                known = Known(there["etag"], there["last_modified"]) if there else None
                if not await fetcher.fetch(image.url, part, known):
                    return
            await asyncio.get_running_loop().run_in_executor(pool, self._store, image, part, row)
            self.fetched += 1
        except FetchError as miss:
            if there is None:
                self._remove(image.before)
                row |= {"reason": miss.reason, "transient": miss.transient, "attempts": miss.attempts}
                self._manifest.append(row)
            if miss.transient and part.come(image.url):
                self._unfinished.add(part.path)
            else:
                part.drop()

    def _store(self, image: _Image, part: PartialFile, row: Row) -> None:
        """Keep what has come whole. In a thread of its own, and to its end even where the run is stopped meanwhile."""
        come = part.whole(image.url)
        assert come is not None
        origin, body = come
        side = self._options.max_side
        try:
            picture = image_files.examine(body, max_pixels=self._options.max_pixels, max_side=side)
        except FetchError as miss:
            miss.attempts = origin.attempts
            raise
        stored = image_files.store(picture, self._images, image.item, image.n, part.stored)
        answer = {"etag": origin.etag, "last_modified": origin.last_modified, "attempts": origin.attempts}
        # First the file, then its row, then the body goes: a kill in between repeats this, without asking the server.
        self._manifest.append({**row, "status": "ok", "max_side": side, **stored, **answer})
        part.drop()

    def _remove(self, row: Row | None) -> None:
        """Remove the picture of a row that no longer holds; what others put there is left."""
        if row and row["status"] == "ok" and image_files.can_name_folder(row["item"]):
            image_files.remove(self._images, row["item"], row["n"])
            with suppress(OSError):  # the item has others
                (self._images / row["item"]).rmdir()


def _fetch(folder: Path, source: Path, options: Options, bar: tqdm) -> tuple[int | None, int]:
    """Settle all images; the signal that stopped it, if one did, and how many it stored."""
    with opened(folder / MANIFEST) as manifest:
        run = _Run(folder, source, options, manifest, bar)
        return run_until_signal(run.all()), run.fetched


def _finish(folder: Path, source: Path, options: Options, report: ImagesReport, started: float) -> ImagesReport:
    """Bring the manifest into the order of the items, and count."""
    count: Counter[str] = Counter()
    misses: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for _, item, urls in read_items(source):
            found = [row for n, url in enumerate(urls) if (row := manifest.find(item, n)) and row["url"] == url]
            ok = [row for row in found if row["status"] == "ok"]
            misses.update(row["reason"] for row in found if row["status"] == "miss")
            count.update(items=1, items_with_image=bool(ok), images=len(found), ok=len(ok))
            count.update(bytes=sum(row["bytes"] for row in ok), transient=sum(row["transient"] for row in found))
            yield from found

    with opened(folder / MANIFEST) as manifest:
        manifest.rewrite(rows())
    figures: dict[str, Any] = {**count, "misses": dict(sorted(misses.items()))}
    report = replace(report, **figures)
    kept = {name: value for name, value in asdict(report).items() if name not in ("fetched", "seconds")}
    kept |= {"max_images": options.max_images, "max_side": options.max_side, "pillow": pillow_version}
    write_json(folder / SUMMARY, kept)
    return replace(report, seconds=time.monotonic() - started)
