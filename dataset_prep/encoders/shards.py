"""Write a matrix in shards of some rows, each complete or absent, and join them to one `.npy` with one shard in memory."""

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

MAX_PROBLEMS = 100  # lines kept; the counts are complete
VISIBLE_WITHIN = 90.0  # seconds until a shared folder (NFS) shows files that another machine has written


@dataclass(frozen=True)
class Shard:
    """The encoding of ``n`` items.

    Attributes:
        vectors: ``[n, D]`` or ``[n, J, D]`` float16/32; a vector of NaN means that the item has none.
        counts: name of an event, such as ``cut short`` -> how often it occurred.
        problems: a line for each input that could not be encoded, with the reason.
    """

    vectors: np.ndarray
    counts: Mapping[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def computed(vectors: np.ndarray) -> np.ndarray:
    """Replace NaN in a network's output by infinity, so that an overflow is not taken for a missing vector."""
    return np.where(np.isnan(vectors), vectors.dtype.type(np.inf), vectors)


@dataclass(frozen=True)
class Shards:
    """The shards of one matrix.

    Attributes:
        folder: folder of the shards.
        items: ``N``, rows of the matrix.
        size: rows per shard; the last may have fewer.
        inputs: JSON-serialisable; everything that the vectors depend on. The names of the files contain its hash, so that
            shards of different inputs are never mixed, even if several commands run.
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
        """Return the rows of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.items))

    def begin(self) -> None:
        """Create an empty folder for these shards."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_json(self.folder / "shards.json", self.inputs)

    def begun(self) -> Any:
        """Return the inputs of the shards in the folder; ``None`` if there are none."""
        try:
            return json.loads((self.folder / "shards.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard; its matrix is written last and marks it as complete."""
        notes = {"counts": dict(shard.counts), "problems": shard.problems[:MAX_PROBLEMS]}
        write_json(self._notes(number), notes)
        write_array(self._matrix(number), shard.vectors)

    def complete(self, number: int) -> bool:
        """Return whether a shard is complete."""
        try:
            return len(np.load(self._matrix(number), mmap_mode="r", allow_pickle=False)) == len(self.rows(number))
        except (OSError, ValueError, EOFError):  # missing, or incomplete after a power failure
            return False

    def wait_for_all(self, seconds: float = VISIBLE_WITHIN) -> None:
        """Wait until every shard is visible on this machine.

        Raises:
            ValueError: a shard is still not visible after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while hidden := [number for number in range(len(self)) if not self.complete(number)]:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{len(hidden)} of {len(self)} shards are not visible in {self.folder} (first: {hidden[0]}); give all "
                    "processes of the run the same shared folder"
                )
            time.sleep(0.5)

    def join(self, path: Path) -> dict[str, Any]:
        """Join all shards to one ``.npy``.

        Args:
            path: file to write. A file in the shards' folder is removed with them if the work is interrupted.

        Returns:
            Shape, type, sha256, share of rows with a vector, and the shards' counts and problems.

        Raises:
            ValueError: the shards have different shapes or types.
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
                    kind = f"{vectors.dtype} {vectors.shape}"
                    raise ValueError(f"{self._matrix(number)} is {kind} and shard 0 {dtype} {first.shape}; rebuild")
                data = (_header(shape, dtype) if number == 0 else b"") + np.ascontiguousarray(vectors).tobytes()
                handle.write(data)
                sha.update(data)
                covered += int((~np.isnan(vectors)).reshape(len(vectors), -1).any(1).sum())
                notes = json.loads(self._notes(number).read_text(encoding="utf-8"))
                counts.update(notes["counts"])
                problems += notes["problems"][: MAX_PROBLEMS - len(problems)]
        return {
            "shape": list(shape),
            "dtype": str(dtype),
            "coverage": covered / self.items,
            "counts": dict(counts),
            "problems": problems,
            "sha256": sha.hexdigest(),
        }

    def remove(self) -> None:
        """Remove all shards, and the remains of an earlier removal that was killed."""
        shutil.rmtree(self._removed, ignore_errors=True)
        if self.folder.exists():
            os.replace(self.folder, self._removed)  # a kill during the removal must not leave an incomplete folder
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
    """Return the header of the ``.npy`` file that numpy would write."""
    header, npy = io.BytesIO(), cast(Any, np.lib.format)  # numpy 1 gives it no types
    npy.write_array_header_1_0(header, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return header.getvalue()
