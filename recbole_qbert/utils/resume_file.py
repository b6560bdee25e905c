"""Store the state after the last completed epoch in a file, from which interrupted work resumes."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_qbert.utils.tensor_file import load_tensors, save_tensors

log = logging.getLogger(__name__)


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
            state = load_tensors(self.path)
        except (ValueError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s): starting anew", self.path, error)
            return None
        if state.get("run") != self.run:
            log.info("%s is of another run: starting anew", self.path)
            return None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state atomically."""
        save_tensors({"run": self.run, **state}, self.path)

    def remove(self) -> None:
        """Remove the file, because the work is done."""
        self.path.unlink(missing_ok=True)
