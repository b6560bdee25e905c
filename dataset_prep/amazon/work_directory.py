"""Where a data set is made before it is shown: a hidden folder beside it, of one process at a time, kept when killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dataset_prep.graceful_shutdown import exclusive


@contextmanager
def work_directory(output: Path, dataset: str) -> Iterator[Path]:
    """The folder `<output>/.<dataset>.preparing`.

    It is removed at the end and after an error, with whatever was made above it. After a kill or Ctrl-C it stays, so that
    the next run finds what was done.

    Raises:
        ValueError: another process is in it.
    """
    above = [folder for folder in (output, *output.parents) if not folder.exists()]
    work = output / f".{dataset}.preparing"
    work.mkdir(parents=True, exist_ok=True)
    with exclusive(work, "preparation in"):
        try:
            yield work
        except Exception:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # not empty any more
                for folder in above:
                    folder.rmdir()
            raise
        shutil.rmtree(work)


def publish(files: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files into a dataset folder so that none is seen half-written.

    The manifest of an earlier run is removed, the files take their places, and the last of `names` (the new manifest) comes
    last: where it stands, the folder is complete.

    Args:
        files: where they lie, on the same file system.
        folder: made if need be.
        names: which; one that is empty is removed from `folder` instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[-1]).unlink(missing_ok=True)
    for name in names:
        if (files / name).stat().st_size:
            os.replace(files / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
