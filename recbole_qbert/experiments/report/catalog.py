"""Read titles of items and make small pictures of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.builtin_encoders import find_images
from recbole_qbert.data.pictures import open_picture
from recbole_qbert.data.text_columns import AUTO, read_titles

TITLE_LENGTH = 120  # characters
SIDE = 72  # pixels; shown at half of it
MOST_PICTURES = 1500
MOST_PICTURE_BYTES = 2_500_000


@dataclass(frozen=True)
class Catalog:
    """Titles and pictures of items, and what is missing.

    Attributes:
        titles: item token -> title, shortened.
        images: item token -> first image file.
        missing: a line for whatever could not be read.
    """

    titles: dict[str, str]
    images: dict[str, Path]
    missing: tuple[str, ...]

    @classmethod
    def read(
        cls,
        data_path: Path | None,
        dataset: str,
        items: Sequence[str],
        form: AtomicFormat = RECBOLE_FORMAT,
        titles: Mapping[str, str] | None = None,
    ) -> Catalog:
        """Read the data set's folder.

        Args:
            data_path: folder that holds the data set's folder; ``None`` if it is not known.
            dataset: name of the data set.
            items: tokens.
            form: how its atomic files are written.
            titles: titles of items that have been read already.
        """
        if data_path is None or not (data_path / dataset).is_dir():
            where = "no data folder was given" if data_path is None else f"the data folder has no {dataset}"
            return cls({}, {}, (f"titles and pictures: {where}",))
        folder, missing = data_path / dataset, []
        try:
            titles = titles or read_titles(folder / f"{dataset}.item", items, AUTO, form)
        except FileNotFoundError:
            missing.append(f"titles: {dataset}.item is missing")
        except (OSError, ValueError) as error:
            missing.append(f"titles: {error}")
        found = zip(items, find_images(folder / "images", items), strict=True)
        images = {item: files[0] for item, files in found if files}
        if not images:
            missing.append(f"pictures: {folder.name} has no folder images/<item>/ with files for any of these items")
        return cls({item: _shorten(title) for item, title in (titles or {}).items()}, images, tuple(missing))


def _shorten(title: str) -> str:
    return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1].rstrip() + "…"


def thumbnails(catalog: Catalog, items: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Make small JPEG pictures as data URIs, in the order of the items, until ``MOST_PICTURE_BYTES`` are used up.

    Returns:
        ``(item token -> data URI, notes)``: the notes say how many did not fit or could not be read.
    """
    pictures: dict[str, str] = {}
    size = unreadable = no_room = 0
    for item in dict.fromkeys(items):
        if item not in catalog.images:
            continue
        if len(pictures) == MOST_PICTURES or size >= MOST_PICTURE_BYTES:
            no_room += 1
            continue
        uri = _thumbnail(catalog.images[item])
        if uri is None:
            unreadable += 1
            continue
        pictures[item] = uri
        size += len(uri)
    notes = []
    if no_room:
        notes.append(f"pictures not shown, to keep this file small: {no_room:,}")
    if unreadable:
        notes.append(f"pictures that could not be read: {unreadable:,}")
    return pictures, notes


def _thumbnail(path: Path) -> str | None:
    from PIL import Image

    try:
        with open_picture(path) as image:
            image.draft("RGB", (SIDE * 2, SIDE * 2))
            small = image.convert("RGBA")
        small.thumbnail((SIDE, SIDE))
        white = Image.new("RGB", small.size, "white")
        white.paste(small, mask=small)
        stream = io.BytesIO()
        white.save(stream, "JPEG", quality=70, optimize=True)
    except (OSError, ValueError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
