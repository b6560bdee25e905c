"""A matrix in pieces: shards of some rows each, whole or absent, joined to one `.npy` without ever holding two of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from recbole_qbert.utils.io import digest, write_array, write_json

MOST_PROBLEMS = 100  # lines kept; the counts are complete
VISIBLE_WITHIN = 90.0  # seconds until a shared folder (NFS) shows what another machine has written


@dataclass(frozen=True)
class Shard:
    """What an encoder makes of ``n`` items.

    Attributes:
        vectors: ``[n, D]`` or ``[n, J, D]`` float16/32; a vector of NaN says that there is none.
        counts: how often something worth knowing happened.
        problems: a line for each input that could not be encoded, and why.
    """

    vectors: np.ndarray
    counts: Mapping[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def computed(vectors: np.ndarray) -> np.ndarray:
    """Vectors that a network has given, with infinity for NaN, so that a number that overflowed is not taken for none."""
    return np.where(np.isnan(vectors), vectors.dtype.type(np.inf), vectors)


@dataclass(frozen=True)
class Shards:
    """The shards of one matrix.

    Attributes:
        folder: where they lie.
        items: ``N``, rows of the matrix.
        size: rows a shard; fewer in the last.
        inputs: JSON-able; all that the vectors depend on. The names of the files carry its hash, so that shards of
            different descriptions never meet, whatever runs beside.
    """

    folder: Path
    items: int
    size: int
    inputs: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"shard_size is {self.size}; it must be at least 1 item")

    def __len__(self) -> int:
        return -(-self.items // self.size)

    def rows(self, number: int) -> range:
        """The rows of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.items))

    def begin(self) -> None:
        """An empty folder for these shards."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_json(self.folder / "shards.json", self.inputs)

    def begun(self) -> Any:
        """The description of the shards that lie there; ``None`` where there are none."""
        try:
            return json.loads((self.folder / "shards.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, number: int, shard: Shard) -> None:
        """Keep a shard; its matrix comes last and says that it is complete."""
        notes = {"counts": dict(shard.counts), "problems": shard.problems[:MOST_PROBLEMS]}
        write_json(self._notes(number), notes)
        write_array(self._matrix(number), shard.vectors)

    def complete(self, number: int) -> bool:
        """Whether a shard is there."""
        try:
            return len(np.load(self._matrix(number), mmap_mode="r", allow_pickle=False)) == len(self.rows(number))
        except (OSError, ValueError, EOFError):  # none yet, or cut short by a machine that lost power
            return False

    def wait_for_all(self, seconds: float = VISIBLE_WITHIN) -> None:
        """Return when this machine sees every shard.

        Raises:
            ValueError: it does not, after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while hidden := [number for number in range(len(self)) if not self.complete(number)]:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{len(hidden)} of {len(self)} shards cannot be seen in {self.folder} (first: {hidden[0]}); all "
                    "processes of one run must share that folder"
                )
            time.sleep(0.5)

    def join(self, path: Path) -> dict[str, Any]:
        """Write all shards, one after the other, as one ``.npy``.

        Args:
            path: where to. A name within the shards' folder is removed with them, should the work be cut short.

        Returns:
            Shape, type, sha256, share of rows that hold a vector, and what the shards had to say.

        Raises:
            ValueError: the shards do not fit together.
        """
        counts: Counter[str] = Counter()
        problems: list[str] = []
        covered, sha = 0, hashlib.sha256()
        first = np.load(self._matrix(0), mmap_mode="r", allow_pickle=False)
        shape, dtype = (self.items, *first.shape[1:]), first.dtype
        with open(path, "wb") as handle:
            for number in range(len(self)):
                vectors = np.load(self._matrix(number), allow_pickle=False)
                if vectors.shape[1:] != shape[1:] or vectors.dtype != dtype:
                    found = f"{vectors.dtype} {vectors.shape}"
                    raise ValueError(f"{self._matrix(number)} is {found} and shard 0 {dtype} {first.shape}; rebuild")
                data = (_header(shape, dtype) if number == 0 else b"") + np.ascontiguousarray(vectors).tobytes()
                handle.write(data)
                sha.update(data)
                covered += int((~np.isnan(vectors)).reshape(len(vectors), -1).any(1).sum())
                notes = json.loads(self._notes(number).read_text(encoding="utf-8"))
                counts.update(notes["counts"])
                problems += notes["problems"][: MOST_PROBLEMS - len(problems)]
        return {
            "shape": list(shape),
            "dtype": str(dtype),
            "coverage": covered / self.items,
            "counts": dict(counts),
            "problems": problems,
            "sha256": sha.hexdigest(),
        }

    def remove(self) -> None:
        """Remove them all, and what a kill has left of an earlier removal."""
        shutil.rmtree(self._removed, ignore_errors=True)
        if self.folder.exists():
            os.replace(self.folder, self._removed)  # a kill on the way must not leave a folder with half of them
            shutil.rmtree(self._removed)

    @property
    def _removed(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.removed")

    @cached_property
    def _key(self) -> str:
        return digest(self.inputs)[:12]

    def _matrix(self, number: int) -> Path:
        return self.folder / f"{number:05d}.{self._key}.npy"

    def _notes(self, number: int) -> Path:
        return self.folder / f"{number:05d}.{self._key}.json"


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The first bytes of the ``.npy`` that numpy would write."""
    header, npy = io.BytesIO(), cast(Any, np.lib.format)  # numpy 1 gives it no types
    npy.write_array_header_1_0(header, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return header.getvalue()
