"""Store the state after the last completed epoch in a file, from which interrupted work resumes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_qbert.utils.io import atomic_write

log = logging.getLogger(__name__)


def save_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values; the same state gives the same bytes whatever the name of the file.

    ``torch.save`` to a path puts the file's name into the archive, and the name of a temporary file holds a process id.
    """
    with open(path, "wb") as handle:
        torch.save(state, handle)


class ResumeFile:
    """State of one piece of work, as tensors and plain values.

    Args:
        path: the file.
        run: digest of everything that the work depends on; the state of another run is ignored.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run

    def load(self) -> dict[str, Any] | None:
        """Read the state; ``None`` if there is none, or if it is damaged or of another run, which is logged."""
        if not self.path.exists():
            return None
        try:
            with warnings.catch_warnings():  # torch warns of pickles before it refuses them
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader of pickles fails in many ways on damaged bytes
            log.warning("%s cannot be read (%s): starting anew", self.path, error)
            return None
        if not isinstance(state, dict) or state.get("run") != self.run:
            log.info("%s is of another run: starting anew", self.path)
            return None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state atomically."""
        with atomic_write(self.path) as temporary:
            save_tensors({"run": self.run, **state}, temporary)

    def remove(self) -> None:
        """Remove the file, because the work is done."""
        self.path.unlink(missing_ok=True)
