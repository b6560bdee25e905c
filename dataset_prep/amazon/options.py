"""What `convert` is asked for, checked before anything is read or written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dataset_prep.amazon.editions import EDITIONS, KEYS
from dataset_prep.amazon.staging import Task

ENGINES = ("local", "spark")


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `amazon.convert`, as they are documented there.

    Attributes:
        metadata: the metadata files, those first that count first.
        after, before: unix seconds.
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

    def __post_init__(self) -> None:
        self._check_values()
        self._check_files()

    @property
    def windowed(self) -> bool:
        """Whether there is a time window."""
        return self.after is not None or self.before is not None

    def options(self) -> dict[str, Any]:
        """What the result depends on besides the files, for the manifest."""
        return {
            "edition": self.edition,
            "min_user_interactions": self.min_user,
            "min_item_interactions": self.min_item,
            "require_image": self.require_image,
            "images": self.images is not None,
            "after": self.after,
            "before": self.before,
            "max_bad_lines": self.max_bad_lines,
        }

    def tasks(self, work: Path) -> list[Task]:
        """What is to be read: the reviews, then the metadata files. A given edition is not that of a RecBole `.item`."""
        tasks = [Task(self.reviews, "reviews", self.edition, self.max_bad_lines, work / "reviews")]
        for n, path in enumerate(self.metadata):
            edition = self.edition if self.edition in KEYS and path.suffix != ".item" else None
            tasks.append(Task(path, "metadata", edition, self.max_bad_lines, work / f"metadata-{n}", n))
        return tasks

    def _check_values(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.dataset):
            raise ValueError(f"dataset {self.dataset!r} names a folder: use letters, digits, '_', '-' and '.'.")
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; it must be {' or '.join(ENGINES)}")
        if self.edition is not None and self.edition not in EDITIONS:
            raise ValueError(f"edition is {self.edition!r}; it must be one of {', '.join(EDITIONS)}, or left out")
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
        for path in (self.reviews, *self.metadata):  # known before the long read of the first
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file. Give a file of one of the editions, plain or gzip.")
        if self.images is not None and not self.images.is_dir():
            raise FileNotFoundError(f"{self.images}: no such folder. Give the folder that holds <item>/<image file>.")
        if self.require_image and self.images is None and not self.metadata:
            raise ValueError("require_image needs metadata or a folder of images to say which items have one")


def metadata_files(reviews: Path, metadata: str | Path | None) -> tuple[Path, ...]:
    """In the order of precedence: what the user gives, then the `.item` file beside an `.inter` file."""
    files = [] if metadata is None else [Path(metadata)]
    beside = reviews.with_suffix(".item")
    if reviews.suffix == ".inter" and beside.is_file() and beside not in files:
        files.append(beside)
    return tuple(files)


def unix_seconds(name: str, value: str | float | None) -> float | None:
    """A limit of the time window: seconds, or an ISO date or time, which is UTC unless it says otherwise.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"{name} is {value!r}; give seconds, or a date or time as in 2016-10-01T12:00:00") from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {value!r}; it must be finite")
    return seconds
