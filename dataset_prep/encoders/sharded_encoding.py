"""Encoding a catalog with a big model: in shards that outlive a kill, by one process or several, to one matrix.

The items are cut, in their order, into shards of a fixed size. Shard s is made by process s modulo the number of processes
and kept in `.X.<modality>.shards/` beside a description of all that the vectors depend on; a restart makes those that are
missing. Process 0 then joins them to `X.<modality>.npy`, adds what made it to `X.features.json` and removes the shards.
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

# Makes the shard of a range of items, and tells the second argument how many more are done.
Encoder = Callable[[range, Callable[[int], object]], Shard]


@dataclass(frozen=True)
class Job:
    """One matrix to make.

    Attributes:
        folder: where it is written.
        dataset: name that the files start with.
        modality: ``text``, ``image`` or another name.
        items: ``N`` tokens, in the order of the rows.
        settings: JSON-able; everything that the vectors depend on, by hashes where it is large.
        about: JSON-able; what is recorded besides and may differ (names, paths).
        versions: of the libraries; shards of different ones are not mixed, a finished matrix stays valid.
        shard_size: items a shard.
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
        """What stands in the item list."""
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
        """All that a shard depends on, as it reads back from JSON."""
        settings = {**self.settings, "items": hashlib.sha256(self.lines.encode()).hexdigest()}
        return json.loads(json.dumps({"settings": settings, "versions": self.versions, "shard_size": self.shard_size}))


def encode(job: Job, load: Callable[[], Encoder], *, rebuild: bool = False, progress: bool = True) -> dict[str, Any]:
    """Make a matrix, or what is missing of it; under `torchrun` together with the other processes of the run.

    Args:
        job: what to make.
        load: loads the model; called only where there is something to encode.
        rebuild: replace a matrix that is there, and unfinished shards of another configuration. Unfinished shards of this
            one are kept: the same command goes on after a kill.
        progress: show a bar over the items.

    Returns:
        The record of the modality, as in ``X.features.json``.

    Raises:
        ValueError: the files that are there belong to something else; a vector is not finite; the device's memory is too
            small; another process died.
    """
    ranks, shards = ProcessGroup.join(), job.shards
    ranks.require_same(digest([job.inputs, job.dataset, job.modality]), f"what {job.matrix.name} is made from")
    finished = ranks.first(lambda: _start(job, rebuild))
    if finished is not None:
        return finished
    mine = range(len(shards))[ranks.rank :: ranks.world]
    missing = [number for number in mine if not shards.complete(number)]
    if missing:
        encoder = load()
        left, total = (sum(len(shards.rows(number)) for number in numbers) for numbers in (missing, mine))
        hidden = not progress or ranks.rank > 0
        with tqdm(total=total, initial=total - left, desc=job.matrix.name, unit="item", disable=hidden) as bar:
            for number in missing:
                shards.write(number, _encode(job, encoder, shards.rows(number), bar.update))
    ranks.wait()
    return ranks.first(lambda: _finish(job))


def _encode(job: Job, encoder: Encoder, rows: range, advance: Callable[[int], object]) -> Shard:
    try:
        shard = encoder(rows, advance)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            "the device's memory is too small; make the batches smaller or the numbers shorter (bfloat16) and start again: "
            f"finished shards are kept ({str(error).splitlines()[0]})"
        ) from error
    broken = (~np.isfinite(shard.vectors)).any(-1) & ~np.isnan(shard.vectors).all(-1)
    if broken.any():
        item = job.items[rows[int(np.argwhere(broken)[0, 0])]]
        raise ValueError(
            f"the vector of item {item} is not finite: a number too large for the type it is computed in? Take bfloat16 or "
            "float32"
        )
    return shard


def _start(job: Job, rebuild: bool) -> dict[str, Any] | None:
    """Refuse, or make ready for the shards; the record where the matrix is there already."""
    _check_items(job, rebuild)
    record, shards, inputs = _records(job).get(job.modality), job.shards, job.inputs
    before = record if isinstance(record, dict) else {}
    begun = shards.begun()
    if not rebuild and before.get("settings") == inputs["settings"] and _intact(job, before):
        if begun is None or begun == inputs:
            shards.remove()
        log.info("%s is there already", job.matrix)
        return before
    if begun == inputs:
        return None
    if begun is not None and not rebuild:
        raise ValueError(
            f"{shards.folder} holds unfinished shards of another configuration ({_differences(begun, inputs)}); finish "
            "them with the command that began them, or drop them: rebuild"
        )
    if job.matrix.exists() and not rebuild:
        maker = f"made by {before['encoder']}" if "encoder" in before else f"not described in {job.record.name}"
        why = _differences(before.get("settings"), inputs["settings"])
        raise ValueError(
            f"{job.matrix} is there, {maker}, and not what this command would make ({why}); move it away, or replace it: "
            "rebuild"
        )
    shards.begin()
    return None


def _finish(job: Job) -> dict[str, Any]:
    """Shards to matrix, item list and record; the shards go last, so that a kill on the way repeats nothing but this."""
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


# ---------------------------------------------------------------------------------------------------------- what is there
def _check_items(job: Job, rebuild: bool) -> None:
    """The item list orders every matrix beside it; it may change only where there is no other, and this one is made anew."""
    others = [name for name in available(job.folder, job.dataset) if name != job.modality]
    if not job.names.exists() or (rebuild and not others):
        return
    before, now = tuple(read_item_list(job.names)), job.items
    if before == now:
        return
    pairs = enumerate(zip(before, now))  # noqa: B905  of different lengths
    line = next((number for number, (old, new) in pairs if old != new), min(len(before), len(now))) + 1
    way_out = "to write it anew: rebuild"
    if others:
        way_out = (
            f"{' and '.join(f'{job.dataset}.{name}.npy' for name in others)} go by it: bring back the items they were made "
            f"for, or move them away together with {job.names.name} and {job.record.name} and make them again"
        )
    raise ValueError(
        f"{job.names} lists {len(before)} items and the data set has {len(now)}, different from line {line} on; {way_out}"
    )


def _records(job: Job) -> dict[str, Any]:
    """What made the matrices in the folder, by modality."""
    return read_json(job.record, "repair it or move it away") if job.record.exists() else {}


def _intact(job: Job, record: Mapping[str, Any]) -> bool:
    return job.names.exists() and job.matrix.exists() and sha256(job.matrix) == record.get("sha256")


def _differences(before: Any, now: Mapping[str, Any]) -> str:
    """What changed between two descriptions, in a few words."""
    if not isinstance(before, Mapping):
        return "nothing says what made it"
    old, new = _flat(before), _flat(now)
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    told = [f"{key}: {_short(old.get(key))} before, {_short(new.get(key))} now" for key in changed[:4]]
    more = [f"and {len(changed) - 4} more"] if len(changed) > 4 else []
    return "; ".join(told + more) or "the file has changed since"


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
