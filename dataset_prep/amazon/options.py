"""Check the options of `convert` before anything is read or written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dataset_prep.amazon.editions import EDITIONS, KEYS, RECBOLE_FIELDS, Fields
from dataset_prep.amazon.staging import Task

ENGINES = ("local", "spark")


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `convert.convert`, which documents them.

    Attributes:
        metadata: the metadata files, in the order of precedence.
        after, before: unix seconds.
        fields: names of the columns of RecBole files.
    """

    reviews: Path
    metadata: tuple[Path, ...]
    dataset: str
    engine: str
    edition: str | None
    min_user: int
    min_item: int
    require_image: bool
    images: Path | None
    after: float | None
    before: float | None
    max_bad_lines: float
    threads: int | None
    fields: Fields = RECBOLE_FIELDS

    def __post_init__(self) -> None:
        self._check_values()
        self._check_files()

    @property
    def windowed(self) -> bool:
        """Whether a time window is set."""
        return self.after is not None or self.before is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the options that the result depends on, for the manifest."""
        return {
            "edition": self.edition,
            "min_user_interactions": self.min_user,
            "min_item_interactions": self.min_item,
            "require_image": self.require_image,
            "images": self.images is not None,
            "after": self.after,
            "before": self.before,
            "max_bad_lines": self.max_bad_lines,
            "fields": self.fields._asdict(),
        }

    def tasks(self, work: Path) -> list[Task]:
        """List the files to read: the reviews, then the metadata. A given edition does not apply to a RecBole `.item`."""
        tasks = [Task(self.reviews, "reviews", self.edition, self.max_bad_lines, work / "reviews", 0, self.fields)]
        for n, path in enumerate(self.metadata):
            edition = self.edition if self.edition in KEYS and path.suffix != ".item" else None
            tasks.append(Task(path, "metadata", edition, self.max_bad_lines, work / f"metadata-{n}", n, self.fields))
        return tasks

    def _check_values(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.dataset):
            raise ValueError(f"dataset {self.dataset!r} cannot name a folder; use letters, digits, '_', '-' and '.'")
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; it must be {' or '.join(ENGINES)}")
        if self.edition is not None and self.edition not in EDITIONS:
            raise ValueError(f"edition is {self.edition!r}; it must be one of {', '.join(EDITIONS)}, or omitted")
        for name, value in (("min_user_interactions", self.min_user), ("min_item_interactions", self.min_item)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1 (1 keeps all).")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
        if not 0 <= self.max_bad_lines < math.inf:
            raise ValueError(f"max_bad_lines is {self.max_bad_lines}; it must be a share below 1, a number of lines, or 0")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise ValueError(f"after ({self.after:.0f} s) must be earlier than before ({self.before:.0f} s)")

    def _check_files(self) -> None:
        for path in (self.reviews, *self.metadata):  # before the first is read, which takes long
            if not path.is_file():
                if path.is_dir():
                    raise ValueError(f"{path} is a folder; give one file of one of the editions")
                raise FileNotFoundError(f"{path}: no such file; give a file of one of the editions")
        if self.images is not None and not self.images.is_dir():
            raise FileNotFoundError(f"{self.images}: no such folder; give the folder that holds <item>/<image file>")
        if self.require_image and self.images is None and not self.metadata:
            raise ValueError("require_image needs metadata, or images: a folder with the images of the items")


def field_names(properties: Mapping[str, str]) -> Fields:
    """Read the names of columns from RecBole's properties.

    Args:
        properties: ``USER_ID_FIELD``, ``ITEM_ID_FIELD``, ``RATING_FIELD`` or ``TIME_FIELD`` -> name of the column.

    Raises:
        ValueError: another property, a name that is no text, or a name that occurs twice.
    """
    keys = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "RATING_FIELD": "rating", "TIME_FIELD": "time"}
    for key, name in properties.items():
        if key not in keys:
            raise ValueError(f"prepare takes no property {key}; it takes {', '.join(keys)}, the columns of RecBole files")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{key} is {name!r}; give the name of a column")
    fields = RECBOLE_FIELDS._replace(**{keys[key]: name for key, name in properties.items()})
    if len(set(fields)) < len(fields):
        raise ValueError(f"the columns of users, items, ratings and times are {', '.join(fields)}; they must differ")
    return fields


def metadata_files(reviews: Path, metadata: str | Path | None) -> tuple[Path, ...]:
    """List the metadata files in the order of precedence: the given file, then the `.item` file beside an `.inter` file."""
    files = [] if metadata is None else [Path(metadata)]
    beside = reviews.with_suffix(".item")
    if reviews.suffix == ".inter" and beside.is_file() and beside not in files:
        files.append(beside)
    return tuple(files)


def unix_seconds(name: str, value: str | float | None) -> float | None:
    """Convert a limit of the time window: seconds, or an ISO date or time (UTC without a time zone).

    Raises:
        ValueError: the value is neither.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"{name} is {value!r}; give seconds, or a date or time as in 2016-10-01T12:00:00") from None
        seconds = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {value!r}; it must be finite")
    return seconds
