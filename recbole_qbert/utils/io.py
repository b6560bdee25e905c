"""Files that are whole or absent: atomic writes, hashes, and the manifests that make a stage's output reusable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it onto ``path`` when the block ends well, remove it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """The JSON object in a file that this software wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; names the file and what is wrong, and ends in the way out.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {way_out}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object; {way_out}")
    return found


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one ``.npy``, whole or not at all."""
    with whole(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a log, if it is there: a crash, or a look while one is written, may find half a line."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def digest(value: Any) -> str:
    """Hex digest of a JSON-able value; the same for the same content whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class Stage:
    """One step of the pipeline whose output is kept and reused while nothing it depends on has changed.

    The manifest ``<name>.manifest.json`` holds what the output was made from (settings, seed, hashes of inputs) and the
    hashes of the output files. Output is reused when both still match.

    Args:
        folder: where the manifest lies.
        name: stem of the manifest's name.
        made_from: JSON-able description of everything the output depends on.
        outputs: the files the stage writes.
    """

    def __init__(self, folder: Path, name: str, made_from: Mapping[str, Any], outputs: list[Path]) -> None:
        self.manifest = folder / f"{name}.manifest.json"
        self.made_from = json.loads(json.dumps(made_from, sort_keys=True, default=str))
        self.outputs = outputs

    def stale(self) -> str | None:
        """Why the stage has to run, or ``None`` when its output can be used."""
        if not self.manifest.exists():
            return "not built yet"
        try:
            kept = json.loads(self.manifest.read_text(encoding="utf-8"))
        except ValueError:  # or not UTF-8
            return f"{self.manifest} is not JSON"
        if not (
            isinstance(kept, dict) and isinstance(kept.get("made_from"), dict) and isinstance(kept.get("outputs"), dict)
        ):
            return f"{self.manifest} is no manifest"
        before = kept["made_from"]
        changed = [key for key in sorted({*before, *self.made_from}) if before.get(key) != self.made_from.get(key)]
        if changed:
            return f"{', '.join(changed)} changed"
        for path in self.outputs:
            if not path.exists():
                return f"{path.name} is missing"
            if kept.get("outputs", {}).get(path.name) != sha256(path):
                return f"{path.name} is not what was written"
        return None

    def report(self) -> dict[str, Any]:
        """The figures kept with the output."""
        return json.loads(self.manifest.read_text(encoding="utf-8"))["report"]

    def run(self, build: Callable[[], dict[str, Any]], rebuild: bool = False) -> tuple[dict[str, Any], str | None]:
        """Run ``build`` unless its output can be reused.

        Args:
            build: writes the outputs and returns the figures to keep.
            rebuild: run it in any case.

        Returns:
            ``(figures, reason)``; the reason is ``None`` when the kept output was used.
        """
        reason = "rebuild was asked for" if rebuild else self.stale()
        if reason is None:
            return self.report(), None
        # The old manifest goes first: an interruption from here on leaves a stage that counts as not built.
        self.manifest.unlink(missing_ok=True)
        report = build()
        written = {path.name: sha256(path) for path in self.outputs}
        write_json(self.manifest, {"made_from": self.made_from, "outputs": written, "report": report})
        return report, reason


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in ``folder``; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
