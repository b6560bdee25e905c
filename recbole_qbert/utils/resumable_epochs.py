"""Count epochs of stages 1 and 2 so that they resume after an interruption."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from recbole_qbert.utils.io import digest
from recbole_qbert.utils.resume_file import ResumeFile

log = logging.getLogger(__name__)
Bar = Callable[[range], range]


class Stateful(Protocol):
    """A network, an optimizer or a schedule."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


class Epochs:
    """Count the epochs of a stage and store its state between them. A resumed run equals an uninterrupted one.

    The state is that of all parts, the figures, and torch's random state. It is written at most every ``seconds``, so that
    writing does not slow down small catalogs. A kill costs about that much work.

    Args:
        path: file of the state; without it nothing is stored.
        inputs: everything that the stage depends on; a state of other inputs is ignored.
        progress: function that wraps a range of epochs in a progress bar.
        seconds: time between two writes.
    """

    def __init__(
        self, path: Path | None = None, inputs: object = None, progress: Bar | None = None, seconds: float = 20.0
    ) -> None:
        self.file = None if path is None else ResumeFile(path, digest(inputs))
        self.progress, self.seconds = progress, seconds
        self.last_saved, self.training = time.monotonic(), 0

    def count(self, total: int, parts: Mapping[str, Stateful], figures: dict[str, Any]) -> Iterator[int]:
        """Yield the numbers, from 0, of the epochs of a training that have not been run.

        A stage may have several trainings one after the other, which are told apart by their order. A training that was
        complete when the stage was killed yields nothing.

        Args:
            total: number of epochs.
            parts: objects that the epochs change; they are set to their saved state.
            figures: plain values and lists of all trainings of the stage; they are updated with the saved ones.
        """
        self.training += 1
        state, first = self.file.load() if self.file else None, 0
        if self.file and state and state["training"] >= self.training:
            figures.update(state["figures"])
            if state["training"] > self.training:
                return
            for key, part in parts.items():
                part.load_state_dict(state["parts"][key])
            torch.set_rng_state(state["random"])
            first = state["epoch"] + 1
            log.info("%s: resuming at epoch %d of %d", self.file.path, first + 1, total)
        epochs = range(first, total)
        for epoch in self.progress(epochs) if self.progress else epochs:
            yield epoch
            if self.file is not None and time.monotonic() - self.last_saved >= self.seconds:
                self.file.save(
                    {
                        "training": self.training,
                        "epoch": epoch,
                        "parts": {key: part.state_dict() for key, part in parts.items()},
                        "figures": figures,
                        "random": torch.get_rng_state(),
                    }
                )
                self.last_saved = time.monotonic()

    def forget(self) -> None:
        """Remove the state, because the work is done and its result is stored elsewhere."""
        if self.file is not None:
            self.file.remove()
