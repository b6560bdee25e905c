"""Epochs of stages 1 and 2 that go on where they were killed."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from recbole_qbert.utils.io import atomic_write, digest

log = logging.getLogger(__name__)
Bar = Callable[[range], range]


class Stateful(Protocol):
    """A network, an optimizer, a schedule."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Epochs:
    """Counts the epochs of a stage and keeps its state between them; a run that goes on equals one that was not stopped.

    What is kept: the state of all parts, figures, and torch's random state. The file is written whole or not at all, not
    more often than every ``seconds``: a kill costs about as much, and small catalogs are not slowed down by writing.

    Args:
        path: of the file; ``None`` keeps nothing.
        inputs: what the stage starts from; a file of anything else is not gone on from.
        progress: wraps a range of epochs, for a progress bar.
        seconds: between two writings.
    """

    def __init__(
        self, path: Path | None = None, inputs: object = None, progress: Bar | None = None, seconds: float = 20.0
    ) -> None:
        self.path, self.run, self.progress, self.seconds = path, digest(inputs), progress, seconds
        self.kept, self.training = time.monotonic(), 0

    def count(self, total: int, parts: Mapping[str, Stateful], figures: dict[str, Any]) -> Iterator[int]:
        """Numbers of the epochs of a training that are still to be run, from 0.

        A stage may have several trainings, one after the other: calls are told apart by their order, and one that was over
        when the stage was killed counts nothing.

        Args:
            total: how many epochs.
            parts: changed in place by the epochs; set to where they were.
            figures: plain values and lists of them, of all trainings of the stage; likewise.
        """
        self.training += 1
        state, first = self._load(), 0
        if state is not None and state["training"] >= self.training:
            figures.update(state["figures"])
            if state["training"] > self.training:
                return
            for key, part in parts.items():
                part.load_state_dict(state["parts"][key])
            torch.set_rng_state(state["random"])
            first = state["epoch"] + 1
            log.info("%s: going on at epoch %d of %d", self.path, first + 1, total)
        epochs = range(first, total)
        for epoch in self.progress(epochs) if self.progress else epochs:
            yield epoch
            if self.path is not None and time.monotonic() - self.kept >= self.seconds:
                self._save(self.path, epoch, parts, figures)

    def forget(self) -> None:
        """Remove the file: the work is done and kept elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _load(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            log.warning("%s cannot be read (%s): starting anew", self.path, error)
            return None
        return state if state.get("run") == self.run else None

    def _save(self, path: Path, epoch: int, parts: Mapping[str, Stateful], figures: dict[str, Any]) -> None:
        state = {
            "run": self.run,
            "training": self.training,
            "epoch": epoch,
            "parts": {key: part.state_dict() for key, part in parts.items()},
            "figures": figures,
            "random": torch.get_rng_state(),
        }
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
        self.kept = time.monotonic()
