"""Build a data set in a hidden folder beside it: one process at a time, kept after a kill, published when complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from recbole_qbert.utils.io import file_lock


@contextmanager
def work_directory(output: Path, dataset: str) -> Iterator[Path]:
    """Create and lock the folder `<output>/.<dataset>.preparing`.

    It is removed at the end and after an error, together with the parent folders created for it. It stays after a kill or
    Ctrl-C, so that the next run can resume.

    Raises:
        ValueError: another process uses it.
    """
    created_parents = [folder for folder in (output, *output.parents) if not folder.exists()]
    work = output / f".{dataset}.preparing"
    work.mkdir(parents=True, exist_ok=True)
    with file_lock(work, wait=False, work="preparation in"):
        try:
            yield work
        except Exception:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # not empty any more
                for folder in created_parents:
                    folder.rmdir()
            raise
        shutil.rmtree(work)


def publish(files: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files into a dataset folder so that nobody sees one half-written.

    First the manifest of an earlier run is removed. The last of `names` is the new manifest and is moved last: a folder that
    has it is complete.

    Args:
        files: folder that holds the files; on the same file system as `folder`.
        folder: the dataset folder; created if it does not exist.
        names: names of the files; an empty file is removed from `folder` instead of moved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[-1]).unlink(missing_ok=True)
    for name in names:
        if (files / name).stat().st_size:
            os.replace(files / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
