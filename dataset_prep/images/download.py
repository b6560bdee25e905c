"""Download the pictures of a data set's items from the URLs in its ``.item`` file.

`download` reads ``X.item`` (``item_id:token``, ``image_urls:token_seq``) and writes into the same folder::

    images/<item>/<n>.jpg ...   image n of the item's list, numbered 000, 001, ...; the ending names the format of the bytes
    images.jsonl                one row per image: its file, or the reason why there is none (image_manifest.py)
    images.json                 the counts; exists only after a complete run
    images.parts/               partially downloaded files

A picture belongs only to the item that lists its URL. An image that cannot be fetched is a miss with a reason. The same
command
again fetches only what is missing: it resumes partial files and retries transient misses, but not permanent ones.
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
from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.utils.io import file_lock, write_json

if TYPE_CHECKING:
    from dataset_prep.images.fetching import Fetcher

MANIFEST, SUMMARY = "images.jsonl", "images.json"
WORKERS = 1000  # images waiting for their turn; enough that a slow host does not block the others
YIELD_AFTER = 256  # existing images checked before the event loop may run other tasks


@dataclass(frozen=True, kw_only=True)
class Options(FetchOptions):
    """Limits of the requests (`FetchOptions`), and which pictures to store.

    Attributes:
        max_images: images per item, the first of its list; None for all.
        max_side: longest side stored, in pixels; larger pictures are shrunk. None stores them as they are.
        max_pixels: largest width x height that is decoded.
        decoders: number of decoding threads; each holds one decoded picture.
        retry_missing: also retry permanent misses.
        revalidate: ask the servers whether existing pictures have changed. A picture is replaced only by a valid new one.
        form: how the ``.item`` file is written.

    Raises:
        ValueError: a value is out of range.
    """

    max_images: int | None = None
    max_side: int | None = None
    max_pixels: int = 50_000_000
    decoders: int = 2
    retry_missing: bool = False
    revalidate: bool = False
    form: AtomicFormat = RECBOLE_FORMAT

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_images", "max_side", "max_pixels", "decoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class ImagesReport:
    """Counts after a run.

    Attributes:
        dataset: name of the data set.
        items: rows of the ``.item`` file.
        items_with_image: items with at least one image.
        images: rows of the manifest.
        ok: images on disk.
        bytes: size of the images on disk.
        misses: reason -> number of misses.
        transient: number of misses that the same command retries.
        fetched: images stored by this run; not in ``images.json``.
        seconds: duration of this run; not in ``images.json``.
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


DEFAULT_OPTIONS = Options()


def download(folder: Path, dataset: str, *, options: Options = DEFAULT_OPTIONS, progress: bool = True) -> ImagesReport:
    """Download the pictures of a data set (see the module's docstring).

    Ctrl-C and SIGTERM end the run in good order; a kill at any moment loses no complete picture.

    Args:
        folder: folder that holds ``<dataset>.item`` and receives all files.
        dataset: name of the data set.
        options: limits and sizes.
        progress: show a bar.

    Raises:
        FileNotFoundError: there is no ``.item`` file.
        ValueError: the ``.item`` file cannot be read, has no URLs or an item twice; pictures with another ``max_side``
            exist; the disk fails; another download runs in the folder; aiohttp is not installed.
    """
    started = time.monotonic()
    if importlib.util.find_spec("aiohttp") is None:
        raise ValueError("the download needs aiohttp, which is not installed: pip install 'recbole-qbert[images]'")
    source = folder / f"{dataset}.item"
    expected = survey(source, options.max_images, options.form)
    try:
        with file_lock(folder, wait=False, work="download into"), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # examine() limits the pixels
            (folder / SUMMARY).unlink(missing_ok=True)  # after an interruption there is none
            with tqdm(total=expected, unit="image", desc=dataset, disable=not progress) as bar:
                stopped, fetched = _fetch(folder, source, options, bar)
            if stopped is None:
                return _finish(folder, source, options, ImagesReport(dataset, fetched=fetched), started)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"{folder}: {error}. Finished pictures are kept; free some space and run the same command again"
        ) from error
    if stopped == signal.SIGTERM:
        signal.signal(stopped, signal.SIG_DFL)  # ray, which RecBole loads, would turn it into an exit code
    signal.raise_signal(stopped)  # as if it had not been caught
    raise KeyboardInterrupt


@dataclass(frozen=True)
class _Image:
    """One URL of an item; `before` is the row of the manifest at its position, which may be of an older URL."""

    item: str
    n: int
    url: str
    before: Row | None


class _Run:
    """One run over all images of a data set."""

    def __init__(self, folder: Path, source: Path, options: Options, manifest: Manifest, bar: tqdm) -> None:
        self.fetched = 0
        self._options, self._manifest, self._bar = options, manifest, bar
        self._images, self._parts = folder / "images", folder / "images.parts"
        self._skipped = 0
        self._unfinished: set[Path] = set()
        self._listed = self._listed_images(source)
        for path in (self._images, self._parts):
            path.mkdir(exist_ok=True)

    async def process_all(self) -> None:
        """Process every image of the file with `WORKERS` concurrent tasks."""
        from dataset_prep.images.fetching import Fetcher

        with ThreadPoolExecutor(self._options.decoders) as pool:
            async with Fetcher(self._options) as fetcher:
                workers = [asyncio.create_task(self._work(fetcher, pool)) for _ in range(WORKERS)]
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

    def _listed_images(self, source: Path) -> Iterator[_Image]:
        for _, item, urls in read_items(source, self._options.form):
            for n, url in enumerate(urls[: self._options.max_images]):
                yield _Image(item, n, url, self._manifest.find(item, n))
            n = len(urls)
            while row := self._manifest.find(item, n):  # the list was longer before
                self._remove(row)
                n += 1

    async def _work(self, fetcher: Fetcher, pool: ThreadPoolExecutor) -> None:
        for image in self._listed:
            row = image.before if image.before and image.before["url"] == image.url else None
            exists = row is not None and self._exists(row)
            if (exists and not self._options.revalidate) or (row and self._is_permanent_miss(row)):
                self._skipped += 1
                if self._skipped % YIELD_AFTER == 0:
                    await asyncio.sleep(0)
            else:
                await self._process(image, row if exists else None, fetcher, pool)
            self._bar.update()

    def _exists(self, row: Row) -> bool:
        """Return whether a row is of a picture that is on disk."""
        if row["status"] != "ok":
            return False
        if row["max_side"] != self._options.max_side:
            raise ValueError(
                f"{self._images / row['file']} was stored with max_side {row['max_side']}, but max_side is "
                f"{self._options.max_side}; give the same value, or remove {self._images} and {self._manifest.path}"
            )
        try:
            return (self._images / row["file"]).stat().st_size == row["bytes"]
        except FileNotFoundError:
            return False

    def _is_permanent_miss(self, row: Row) -> bool:
        return row["status"] == "miss" and not row["transient"] and not self._options.retry_missing

    async def _process(self, image: _Image, existing: Row | None, fetcher: Fetcher, pool: ThreadPoolExecutor) -> None:
        """Store one image, or record the reason why not; `existing` is the row of a valid picture that is on disk."""
        from dataset_prep.images.fetching import CachedResponse

        part = PartialFile(self._parts, image.item, image.n)
        row = NO_ROW | {"item": image.item, "n": image.n, "url": image.url}
        try:
            if not image_files.can_name_folder(image.item):
                raise FetchError("unsafe_item_id")
            if part.read_complete(image.url) is None:
                cached = CachedResponse(existing["etag"], existing["last_modified"]) if existing else None
                if not await fetcher.fetch(image.url, part, cached):
                    return
            await asyncio.get_running_loop().run_in_executor(pool, self._store, image, part, row)
            self.fetched += 1
        except FetchError as miss:
            if existing is None:
                self._remove(image.before)
                row |= {"reason": miss.reason, "transient": miss.transient, "attempts": miss.attempts}
                self._manifest.append(row)
            if miss.transient and part.progress(image.url):
                self._unfinished.add(part.path)
            else:
                part.remove()

    def _store(self, image: _Image, part: PartialFile, row: Row) -> None:
        """Store a complete body. Runs in a thread, to its end even if the run is stopped meanwhile."""
        complete = part.read_complete(image.url)
        assert complete is not None
        origin, body = complete
        side = self._options.max_side
        try:
            picture = image_files.examine(body, max_pixels=self._options.max_pixels, max_side=side)
        except FetchError as miss:
            miss.attempts = origin.attempts
            raise
        stored = image_files.store(picture, self._images, image.item, image.n, part.stored)
        response = {"etag": origin.etag, "last_modified": origin.last_modified, "attempts": origin.attempts}
        # First the file, then its row, then remove the body: a kill in between repeats this without a request.
        self._manifest.append({**row, "status": "ok", "max_side": side, **stored, **response})
        part.remove()

    def _remove(self, row: Row | None) -> None:
        """Remove the picture of an outdated row, but no files of other origin."""
        if row and row["status"] == "ok" and image_files.can_name_folder(row["item"]):
            image_files.remove(self._images, row["item"], row["n"])
            with suppress(OSError):  # the item has other pictures
                (self._images / row["item"]).rmdir()


def _fetch(folder: Path, source: Path, options: Options, bar: tqdm) -> tuple[int | None, int]:
    """Process all images; return the signal that stopped the run, or ``None``, and the number of stored images."""
    with opened(folder / MANIFEST) as manifest:
        run = _Run(folder, source, options, manifest, bar)
        return run_until_signal(run.process_all()), run.fetched


def _finish(folder: Path, source: Path, options: Options, report: ImagesReport, started: float) -> ImagesReport:
    """Sort the manifest into the order of the items, and count."""
    count: Counter[str] = Counter()
    misses: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for _, item, urls in read_items(source, options.form):
            item_rows = [row for n, url in enumerate(urls) if (row := manifest.find(item, n)) and row["url"] == url]
            ok = [row for row in item_rows if row["status"] == "ok"]
            misses.update(row["reason"] for row in item_rows if row["status"] == "miss")
            count.update(items=1, items_with_image=bool(ok), images=len(item_rows), ok=len(ok))
            count.update(bytes=sum(row["bytes"] for row in ok), transient=sum(row["transient"] for row in item_rows))
            yield from item_rows

    with opened(folder / MANIFEST) as manifest:
        manifest.rewrite(rows())
    counts: dict[str, Any] = {**count, "misses": dict(sorted(misses.items()))}
    report = replace(report, **counts)
    summary = {name: value for name, value in asdict(report).items() if name not in ("fetched", "seconds")}
    summary |= {"max_images": options.max_images, "max_side": options.max_side, "pillow": pillow_version}
    write_json(folder / SUMMARY, summary)
    return replace(report, seconds=time.monotonic() - started)
