"""Encode a catalog with a large model, in shards that survive a kill, by one process or several.

The items are divided, in their order, into shards of a fixed size. Process p of P computes the shards s with s mod P = p and
writes them to `.X.<modality>.shards/`, beside a description of everything that the vectors depend on. A restart computes the
missing shards. At the end process 0 joins them to `X.<modality>.npy`, records the settings in `X.features.json` and removes
the shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dataset_prep.encoders.distributed import ProcessGroup
from dataset_prep.encoders.shards import Shard, Shards
from recbole_qbert.data.item_features import available, read_item_list
from recbole_qbert.utils.io import atomic_write, digest, file_lock, read_json, sha256, write_json

log = logging.getLogger(__name__)

# Encodes a range of items; calls the second argument with the number of items completed since the last call.
Encoder = Callable[[range, Callable[[int], object]], Shard]


@dataclass(frozen=True)
class Job:
    """One matrix to compute.

    Attributes:
        folder: output folder.
        dataset: name that the files start with.
        modality: ``text``, ``image`` or another name.
        items: ``N`` tokens, in the order of the rows.
        settings: JSON-serialisable; everything that the vectors depend on, large data as hashes.
        about: JSON-serialisable; further facts for the record that may differ between runs (names, paths).
        versions: versions of the libraries. Shards of different versions are not mixed; a finished matrix stays valid.
        shard_size: items per shard.
    """

    folder: Path
    dataset: str
    modality: str
    items: tuple[str, ...]
    settings: dict[str, Any]
    about: dict[str, Any]
    versions: dict[str, str]
    shard_size: int

    @property
    def matrix(self) -> Path:
        return self.folder / f"{self.dataset}.{self.modality}.npy"

    @property
    def names(self) -> Path:
        return self.folder / f"{self.dataset}.items.txt"

    @property
    def lines(self) -> str:
        """Content of the item list."""
        return "".join(f"{item}\n" for item in self.items)

    @property
    def record(self) -> Path:
        return self.folder / f"{self.dataset}.features.json"

    @property
    def shards(self) -> Shards:
        folder = self.folder / f".{self.dataset}.{self.modality}.shards"
        return Shards(folder, len(self.items), self.shard_size, self.inputs)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Everything that a shard depends on, in the form that JSON gives back."""
        settings = {**self.settings, "items": hashlib.sha256(self.lines.encode()).hexdigest()}
        return json.loads(json.dumps({"settings": settings, "versions": self.versions, "shard_size": self.shard_size}))


def encode(job: Job, load: Callable[[], Encoder], *, rebuild: bool = False, progress: bool = True) -> dict[str, Any]:
    """Compute a matrix, or its missing shards; under `torchrun` together with the other processes of the run.

    Args:
        job: the matrix.
        load: loads the model; called only if there is something to encode.
        rebuild: replace an existing matrix, and unfinished shards of another configuration. Unfinished shards of the same
            configuration are kept: the same command resumes after a kill.
        progress: show a bar over the items.

    Returns:
        The record of the modality, as in ``X.features.json``.

    Raises:
        ValueError: existing files are of another configuration; a vector is not finite; the device's memory is too small;
            another process died.
    """
    processes, shards = ProcessGroup.join(), job.shards
    processes.require_same(digest([job.inputs, job.dataset, job.modality]), f"the inputs of {job.matrix.name}")
    finished = processes.run_on_first(lambda: _start(job, rebuild))
    if finished is not None:
        return finished
    own = range(len(shards))[processes.rank :: processes.world]
    missing = [number for number in own if not shards.complete(number)]
    if missing:
        encoder = load()
        remaining, total = (sum(len(shards.rows(number)) for number in numbers) for numbers in (missing, own))
        hidden = not progress or processes.rank > 0
        with tqdm(total=total, initial=total - remaining, desc=job.matrix.name, unit="item", disable=hidden) as bar:
            for number in missing:
                shards.write(number, _encode(job, encoder, shards.rows(number), bar.update))
    processes.wait()
    return processes.run_on_first(lambda: _finish(job))


def _encode(job: Job, encoder: Encoder, rows: range, advance: Callable[[int], object]) -> Shard:
    try:
        shard = encoder(rows, advance)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"the device's memory is too small ({str(error).splitlines()[0]}); use smaller batches or bfloat16 and start "
            "again: finished shards are kept"
        ) from error
    not_finite = (~np.isfinite(shard.vectors)).any(-1) & ~np.isnan(shard.vectors).all(-1)
    if not_finite.any():
        item = job.items[rows[int(np.argwhere(not_finite)[0, 0])]]
        raise ValueError(
            f"the vector of item {item} is not finite, perhaps because a number is too large for the type; use bfloat16 "
            "or float32"
        )
    return shard


def _start(job: Job, rebuild: bool) -> dict[str, Any] | None:
    """Check the existing files and prepare the shards' folder; return the record if the matrix is complete."""
    _check_items(job, rebuild)
    record, shards, inputs = _records(job).get(job.modality), job.shards, job.inputs
    before = record if isinstance(record, dict) else {}
    begun = shards.begun()
    if not rebuild and before.get("settings") == inputs["settings"] and _intact(job, before):
        if begun is None or begun == inputs:
            shards.remove()
        log.info("%s is complete", job.matrix)
        return before
    if begun == inputs:
        return None
    if begun is not None and not rebuild:
        raise ValueError(
            f"{shards.folder} holds unfinished shards of another configuration ({_differences(begun, inputs)}); finish "
            "them with the earlier command, or discard them with rebuild"
        )
    if job.matrix.exists() and not rebuild:
        maker = f"made by {before['encoder']}" if "encoder" in before else f"not described in {job.record.name}"
        differences = _differences(before.get("settings"), inputs["settings"])
        raise ValueError(
            f"{job.matrix} exists, {maker}, and differs from the result of this command ({differences}); move it away, or "
            "replace it with rebuild"
        )
    shards.begin()
    return None


def _finish(job: Job) -> dict[str, Any]:
    """Write matrix, item list and record from the shards, which are removed last so that a kill repeats only this step."""
    shards = job.shards
    shards.wait_for_all()
    part = shards.folder / "matrix.part"
    record = {**job.about, "settings": job.inputs["settings"], "versions": job.versions, **shards.join(part)}
    os.replace(part, job.matrix)
    if not job.names.exists() or sha256(job.names) != record["settings"]["items"]:
        with atomic_write(job.names) as temporary:
            temporary.write_text(job.lines, encoding="utf-8")
    with file_lock(job.folder):  # text and images may be encoded at the same time, and share one record
        write_json(job.record, {**_records(job), job.modality: record})
    shards.remove()
    return record


# ---------------------------------------------------------------------------------------------------------- existing files
def _check_items(job: Job, rebuild: bool) -> None:
    """Check that the item list, which orders every matrix, is unchanged, unless the only matrix is replaced."""
    others = [name for name in available(job.folder, job.dataset) if name != job.modality]
    if not job.names.exists() or (rebuild and not others):
        return
    before, now = tuple(read_item_list(job.names)), job.items
    if before == now:
        return
    pairs = enumerate(zip(before, now))  # noqa: B905  of different lengths
    line = next((number for number, (old, new) in pairs if old != new), min(len(before), len(now))) + 1
    way_out = "replace it with rebuild"
    if others:
        way_out = (
            f"it orders {' and '.join(f'{job.dataset}.{name}.npy' for name in others)}: restore the items of these "
            f"matrices, or move them away together with {job.names.name} and {job.record.name} and make them again"
        )
    raise ValueError(
        f"{job.names} lists {len(before)} items and the data set has {len(now)}, which differ from line {line} on; {way_out}"
    )


def _records(job: Job) -> dict[str, Any]:
    """Read the records of the matrices in the folder, by modality."""
    return read_json(job.record, "repair it or move it away") if job.record.exists() else {}


def _intact(job: Job, record: Mapping[str, Any]) -> bool:
    return job.names.exists() and job.matrix.exists() and sha256(job.matrix) == record.get("sha256")


def _differences(before: Any, now: Mapping[str, Any]) -> str:
    """Describe the changes between two configurations in a few words."""
    if not isinstance(before, Mapping):
        return "its settings are unknown"
    old, new = _flat(before), _flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    texts = [f"{key}: {_short(old.get(key))} before, {_short(new.get(key))} now" for key in changed[:4]]
    more = [f"and {len(changed) - 4} more"] if len(changed) > 4 else []
    return "; ".join(texts + more) or "the file has changed since"


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= {f"{key}.{k}": v for k, v in _flat(item).items()} if isinstance(item, Mapping) else {key: item}
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."
