"""Show running trials: one line on a terminal, updated in place; in a log, a line every ten minutes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from recbole_qbert.experiments.suites import learning_curve
from recbole_qbert.utils.console import progress_bars_wanted, say

PULSE = 600.0  # seconds between two lines in a log
REDRAW = 1.0  # the same on a terminal


class Status:
    """Display of how many trials are finished, and how far the running ones are.

    Args:
        total: how many trials are to be run.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.drawn = total, 0, time.monotonic()
        self.bar = tqdm(
            total=total, disable=not progress_bars_wanted(), leave=False, dynamic_ncols=True,
            bar_format="{n}/{total} trials [{elapsed}] {desc}",
        )  # fmt: skip

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, running: Sequence[tuple[str, Path]]) -> None:
        """Draw the display, if the last time is long enough ago.

        Args:
            running: name and folder of every running trial.
        """
        if not running or time.monotonic() - self.drawn < (PULSE if self.bar.disable else REDRAW):
            return
        self.drawn = time.monotonic()
        text = "; ".join(f"{name}: {learning_curve.latest(folder / 'work')}" for name, folder in running)
        if self.bar.disable:
            say(f"running: {text}")
        else:
            self.bar.set_description_str(text)

    def end(self, text: str) -> None:
        """Count a trial that has ended, and print a line."""
        self.done += 1
        self.bar.clear()
        say(f"[{self.done}/{self.total}] {text}")
        self.bar.update()
