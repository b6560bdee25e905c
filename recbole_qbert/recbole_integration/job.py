"""The input of a workflow: a data set, its folder, the output folder, and the properties."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_qbert.config.schema import MODEL
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.utils.atomic import run_lock
from recbole_qbert.utils.console import progress_bars_wanted
from recbole_qbert.utils.distributed import rank, torchrun_settings


@dataclass(frozen=True)
class Job:
    """A data set with the settings of QBERT4Rec.

    Attributes:
        dataset: name of the data set.
        data_path: folder that holds the data set's folder.
        output: folder of everything that is written; the data set's output lies in a folder of its name.
        properties: properties of QBERT4Rec or RecBole; they override ``config_files``.
        config_files: property files; later ones override earlier ones.
    """

    dataset: str
    data_path: Path
    output: Path = Path("runs")
    properties: Mapping[str, Any] = field(default_factory=dict)
    config_files: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        dataset: str,
        data_path: str | os.PathLike[str],
        output: str | os.PathLike[str] = "runs",
        properties: Mapping[str, Any] | None = None,
        config_files: Sequence[str | os.PathLike[str]] = (),
    ) -> Job:
        """Make a job of plain values.

        Args:
            dataset: name of the data set.
            data_path: folder that holds the data set's folder.
            output: folder of everything that is written.
            properties: properties of QBERT4Rec or RecBole.
            config_files: property files.
        """
        return cls(dataset, Path(data_path), Path(output), dict(properties or {}), tuple(map(str, config_files)))

    @property
    def folder(self) -> Path:
        """Return the folder of the data set's output."""
        return (self.output / self.dataset).resolve()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse other commands that write to the folder while the block runs; of several processes the first one locks.

        Raises:
            ValueError: another command writes to the folder.
        """
        with run_lock(self.folder, "command") if rank() == 0 else nullcontext():
            yield

    def replace(self, **changes: Any) -> Job:
        """Return the job with other attributes."""
        return dataclasses.replace(self, **changes)

    def with_properties(self, **properties: Any) -> Job:
        """Return the job with more properties."""
        return self.replace(properties={**self.properties, **properties})

    def configure(self, **settings: Any) -> Config:
        """Return RecBole's configuration; ``settings`` override the job's properties."""
        base: dict[str, Any] = {"semantic_id_dir": str(self.folder), "checkpoint_dir": str(self.folder / "checkpoints")}
        base |= {"show_progress": progress_bars_wanted(), **torchrun_settings()}
        properties = {**base, **self.properties, **settings}
        return experiment.configure(MODEL, self.dataset, self.data_path, properties, self.config_files)

    def atomic_format(self, dataset: str) -> AtomicFormat:
        """Return how the atomic files of a data set beside the job's are written."""
        return AtomicFormat.from_config(self.replace(dataset=dataset).configure())
