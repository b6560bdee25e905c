"""Unions of data sets, for pretraining on several domains (paper 3.6).

A union is a data set whose user and item tokens start with the name of their data set (``Arts/B0002E3CHC``). Features,
stages 1 and 2 and pretraining run on it as on any data set, so that one quantizer makes the vocabulary of all domains.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.failures import reading
from recbole_qbert.utils.io import atomic_write, sha256, write_json

INTERACTION_TYPES = ("token", "token", "float")
CODE_TABLES = (".text_codes.tsv", ".image_codes.tsv")  # given codes, of one quantizer for all data sets


def write_union(
    datasets: Sequence[str], data_path: Path, output: Path, name: str, form: AtomicFormat = RECBOLE_FORMAT
) -> Path:
    """Write the union of data sets, or reuse it while its parts have not changed.

    Interactions keep their order. Item texts (``.item``) are united if every data set has them, and so are tables of given
    codes (``.text_codes.tsv``, ``.image_codes.tsv``), features if every data set has the same modalities in the same shape;
    pictures are linked.

    Args:
        datasets: names of the data sets.
        data_path: folder that holds their folders.
        output: folder to write the union's folder into (RecBole's ``data_path`` of the union).
        name: name of the union.
        form: how the atomic files of the data sets are written; those of the union are written so, too.

    Returns:
        The union's folder.

    Raises:
        FileNotFoundError: a data set is missing.
        ValueError: no data set, a name twice or with a '/', a header without user, item and timestamp, or
            features that differ in modalities or shape, or codes in their levels.
    """
    if len(set(datasets)) != len(datasets) or not datasets or any("/" in dataset for dataset in datasets):
        raise ValueError(f"datasets are {', '.join(datasets) or 'none'}; name each once, without '/'")
    folders = {dataset: data_path / dataset for dataset in datasets}
    for dataset, folder in folders.items():
        if not (folder / f"{dataset}.inter").exists():
            raise FileNotFoundError(f"{folder / dataset}.inter is missing; data_path must hold a folder {dataset} with it")
    target = output / name
    target.mkdir(parents=True, exist_ok=True)
    modalities = _common_modalities(folders)
    texts = all((folder / f"{dataset}.item").exists() for dataset, folder in folders.items())
    codes = [suffix for suffix in CODE_TABLES if all((f / f"{d}{suffix}").exists() for d, f in folders.items())]
    suffixes = [".inter", *([".item"] if texts else []), *codes]
    suffixes += [".items.txt", *(f".{modality}.npy" for modality in modalities)] if modalities else []
    hashes = {
        str(path): sha256(path) for d, f in folders.items() for suffix in suffixes if (path := f / f"{d}{suffix}").exists()
    }
    inputs: dict[str, Any] = {"datasets": list(datasets), "inputs": hashes}
    if form != RECBOLE_FORMAT:
        inputs["form"] = form.properties

    def build() -> dict[str, Any]:
        count = _unite_interactions(folders, target / f"{name}.inter", form)
        if texts:
            _unite_items(folders, target / f"{name}.item", form)
        for suffix in codes:
            _unite_codes({d: f / f"{d}{suffix}" for d, f in folders.items()}, target / f"{name}{suffix}")
        if modalities:
            _unite_features(folders, target, name, modalities)
        return {"interactions": count, "modalities": list(modalities), "texts": texts}

    current = [*suffixes, ".features.json"] if modalities else suffixes
    old_features = [f".{modality}.npy" for modality in features.available(target, name)]
    for suffix in (".item", ".items.txt", *CODE_TABLES, ".features.json", *old_features):
        if suffix not in current:  # of an earlier union, which had more files
            (target / f"{name}{suffix}").unlink(missing_ok=True)
    CachedStep(target, f"{name}.union", inputs, [target / f"{name}{suffix}" for suffix in suffixes]).run(build)
    _link_images(folders, target / "images")
    return target


def balanced_order(domains: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the rows of an epoch in which every domain has the same number of rows; in all about as many as there are.

    Rows of small domains are repeated (each as often as any other, give or take one); of large domains some are left out.
    The paper is silent.

    Args:
        domains: ``[U]`` int64 domain of each row.
        generator: random numbers of the choice and the order.

    Returns:
        Row numbers, int64.
    """
    names = domains.unique().tolist()
    share = -(-len(domains) // len(names))
    parts = []
    for domain in names:
        rows = (domains == domain).nonzero()[:, 0]
        rounds = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-share // len(rows)))]
        parts.append(torch.cat(rounds)[:share])
    rows = torch.cat(parts)
    return rows[torch.randperm(len(rows), generator=generator)]


@contextmanager
def _writer(path: Path, form: AtomicFormat) -> Iterator[Callable[[Iterable[Sequence[str]]], None]]:
    """Write an atomic file; yields a function that writes rows."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding=form.encoding, newline="") as handle,
    ):
        yield csv.writer(handle, delimiter=form.field_separator, lineterminator="\n").writerows


def _unite_interactions(folders: dict[str, Path], path: Path, form: AtomicFormat) -> int:
    count = 0

    def rows(dataset: str, folder: Path) -> Iterator[tuple[str, str, str]]:
        nonlocal count
        for _, (user, item, time) in form.rows(folder / f"{dataset}.inter", form.fields):
            count += 1
            yield f"{dataset}/{user}", f"{dataset}/{item}", time

    with _writer(path, form) as write:
        write([[f"{field}:{kind}" for field, kind in zip(form.fields, INTERACTION_TYPES, strict=True)]])
        for dataset, folder in folders.items():
            write(rows(dataset, folder))
    return count


def _unite_items(folders: dict[str, Path], path: Path, form: AtomicFormat) -> None:
    """Unite item rows over the columns that any data set has; a column that a data set lacks is empty there."""
    files = {dataset: folder / f"{dataset}.item" for dataset, folder in folders.items()}
    headers = {dataset: form.header(file) for dataset, file in files.items()}
    types = {column.name: column.type for header in headers.values() for column in header.columns}
    columns = [form.item_field, *(name for name in types if name != form.item_field)]

    def rows(dataset: str) -> Iterator[list[str]]:
        own = headers[dataset].names
        for _, (item, *cells) in form.rows(files[dataset], [form.item_field, *own], pad=True):
            row = dict(zip(own, cells, strict=True)) | {form.item_field: f"{dataset}/{item}"}
            yield [row.get(column, "") for column in columns]

    with _writer(path, form) as write:
        write([[f"{name}:{types[name]}" if types.get(name) else name for name in columns]])
        for dataset in folders:
            write(rows(dataset))


def _unite_codes(files: dict[str, Path], path: Path) -> None:
    """Unite tables of given codes, whose items get the name of their data set."""
    headers = {}
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as united:
        for dataset, file in files.items():
            with reading(file), open(file, encoding="utf-8-sig") as handle:
                headers[dataset] = handle.readline()
                if len(headers) == 1:
                    united.write(headers[dataset])
                if headers[dataset].split() != next(iter(headers.values())).split():
                    first = next(iter(files.values()))
                    raise ValueError(
                        f"{file}:1: its columns are {', '.join(headers[dataset].split())}, those of {first} are "
                        f"{', '.join(next(iter(headers.values())).split())}; codes of all data sets must be of one quantizer"
                    )
                united.writelines(f"{dataset}/{line.rstrip()}\n" for line in handle if line.strip())


def _common_modalities(folders: dict[str, Path]) -> tuple[str, ...]:
    modalities = {dataset: features.available(folder, dataset) for dataset, folder in folders.items()}
    first, *others = modalities.values()
    if all(other == first for other in others):
        return first
    listed = "; ".join(f"{dataset}: {', '.join(names) or 'none'}" for dataset, names in modalities.items())
    raise ValueError(
        f"the data sets have different features ({listed}); encode all of them with the same encoders, or remove the "
        "feature files to use the built-in encoders for all"
    )


def _unite_features(folders: dict[str, Path], target: Path, name: str, modalities: Sequence[str]) -> None:
    """Concatenate the feature rows in parts, so that no matrix is in memory as a whole."""
    lists = {dataset: list(features.read_item_list(f / f"{dataset}.items.txt")) for dataset, f in folders.items()}
    rows = sum(map(len, lists.values()))
    for modality in modalities:
        paths = {dataset: folder / f"{dataset}.{modality}.npy" for dataset, folder in folders.items()}
        matrices = {d: np.load(path, mmap_mode="r", allow_pickle=False) for d, path in paths.items()}
        shapes = {d: (matrix.shape[1:], len(matrix) == len(lists[d])) for d, matrix in matrices.items()}
        first = next(iter(matrices.values()))
        if any(shape != (first.shape[1:], True) for shape in shapes.values()):
            listed = "; ".join(f"{paths[d]}: {matrix.shape}" for d, matrix in matrices.items())
            raise ValueError(f"{modality} features of the data sets do not fit together ({listed}); use one encoder for all")
        with atomic_write(target / f"{name}.{modality}.npy") as temporary:
            united = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                temporary, "w+", np.float32, (rows, *first.shape[1:])
            )
            start = 0
            for matrix in matrices.values():
                for row in range(0, len(matrix), 65_536):
                    part = matrix[row : row + 65_536]
                    united[start + row : start + row + len(part)] = part
                start += len(matrix)
            united.flush()
            del united
    with atomic_write(target / f"{name}.items.txt") as temporary:
        temporary.write_text("".join(f"{d}/{item}\n" for d, items in lists.items() for item in items), encoding="utf-8")
    write_json(target / f"{name}.features.json", {"union_of": {d: str(folder) for d, folder in folders.items()}})


def _link_images(folders: dict[str, Path], target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for dataset, folder in folders.items():
        if (folder / "images").is_dir():
            target.mkdir(exist_ok=True)
            (target / dataset).symlink_to((folder / "images").resolve(), target_is_directory=True)
