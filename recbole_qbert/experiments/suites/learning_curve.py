"""Collect learning curves from the lines that RecBole's trainers log for every epoch.

All trainers write these lines; only some call ``fit``'s callback, and it does not get the time.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_qbert.utils.io import json_lines


@contextmanager
def watched(stage: str) -> Iterator[dict[int, dict[str, Any]]]:
    """Collect the epochs of a training; write them into a file in the current folder, so that a training can resume.

    Args:
        stage: name of the training.

    Yields:
        Epoch -> ``epoch``, ``seconds`` (training and validation) and ``valid_score`` (``None`` where there is none), with
        the epochs before an interruption. The file gets a line after training and another after validation.
    """
    file = Path(f"curve-{stage}.jsonl")
    epochs = {line["epoch"]: line for line in json_lines(file)}
    handler = _Watch(epochs, file)
    logging.getLogger().addHandler(handler)
    try:
        yield epochs
    finally:
        logging.getLogger().removeHandler(handler)


def latest(folder: Path) -> str:
    """Describe how far the training is whose curves lie in ``folder``."""
    files = sorted(folder.glob("curve-*.jsonl"), key=lambda file: file.stat().st_mtime)
    lines = json_lines(files[-1]) if files else []
    if not lines:
        return "before the first epoch"
    scores = [line["valid_score"] for line in lines if line["valid_score"] is not None]
    validation = f", validation {scores[-1]:.4f} (best {max(scores):.4f})" if scores else ""
    return f"{files[-1].stem.removeprefix('curve-')} epoch {lines[-1]['epoch'] + 1}{validation}"


class _Watch(logging.Handler):
    _COLOUR = re.compile(r"\x1b\[[0-9;]*m")
    _EPOCH = re.compile(r"epoch (\d+) (?:training|evaluating) \[time: ([\d.]+)s(?:, valid_score: ([-\d.]+))?")

    def __init__(self, epochs: dict[int, dict[str, Any]], file: Path) -> None:
        super().__init__(logging.INFO)
        self.epochs, self.file = epochs, file

    def emit(self, record: logging.LogRecord) -> None:
        match = self._EPOCH.match(self._COLOUR.sub("", str(record.msg)))
        if match is None:
            return
        number, seconds = int(match[1]), float(match[2])
        if match[3] is None:
            self.epochs[number] = {"epoch": number, "seconds": seconds, "valid_score": None}
        else:
            epoch = self.epochs[number]
            epoch |= {"seconds": round(epoch["seconds"] + seconds, 2), "valid_score": float(match[3])}
        with open(self.file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(self.epochs[number]) + "\n")
