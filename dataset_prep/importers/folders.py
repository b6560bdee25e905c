"""Read published folders, in which users and items are indexes and small files map indexes to tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_prep.amazon.cleaning import cut_cell
from dataset_prep.importers import matrices
from dataset_prep.importers.build import Build, FeatureReport, check_id, read_lines, write_lines
from recbole_qbert.utils.io import write_json

BY_POSITION = "position in the user's history, from 0: the source gives the order only"
Histories = Mapping[int, Sequence[int]]  # user index -> item indexes in order; never empty, users in order


@dataclass(frozen=True)
class SourceFiles:
    """The files of a folder by their role; ``None`` if one is missing.

    Attributes:
        histories: files of the interactions.
        items: token and index of the items.
        users: token and index of the users.
        texts: texts of the items.
        features: modality -> matrix, one row an index.
        codes: modality -> code tokens of the items.
        missing: names of optional files that are not there.
        ignored: names of files that are not used -> the reason.
    """

    histories: tuple[Path, ...]
    items: Path | None
    users: Path | None
    texts: Path | None
    features: dict[str, Path]
    codes: dict[str, Path]
    missing: tuple[str, ...]
    ignored: dict[str, str]

    def files(self) -> list[Path]:
        """Return all files that are read."""
        single = [path for path in (self.items, self.users, self.texts) if path]
        return [*self.histories, *single, *self.features.values(), *self.codes.values()]


def locate(source: Path, dataset: str, ending: str) -> Path:
    """Find the folder that holds ``<dataset><ending>``: ``source`` itself or ``source/<dataset>``.

    Args:
        source: folder to search.
        dataset: name of the data set.
        ending: ending of a file that every such folder has.

    Raises:
        FileNotFoundError: neither folder holds it; the message names the data sets that exist.
    """
    for folder in (source, source / dataset):
        if (folder / f"{dataset}{ending}").is_file():
            return folder
    datasets = sorted({path.name[: -len(ending)] for path in [*source.glob(f"*{ending}"), *source.glob(f"*/*{ending}")]})
    hint = f"it has {', '.join(datasets[:5])}" if datasets else f"there is no *{ending} at all"
    raise FileNotFoundError(f"{source} holds no {dataset}{ending}, nor does a folder {dataset} in it; {hint}")


def assign(file_of: dict[str, Path], modality: str, path: Path) -> None:
    """Assign a file to a modality.

    Args:
        file_of: modality -> file; receives the entry.
        modality: name of the modality.
        path: the file.

    Raises:
        ValueError: the modality already has a file.
    """
    if modality in file_of:
        raise ValueError(f"{file_of[modality]} and {path.name} are both of {modality}; leave one of them in the folder")
    file_of[modality] = path


def read_index(path: Path, kind: str) -> list[str]:
    """Read the tokens, ordered by index, from lines of ``token<TAB>index``.

    Args:
        path: ``*.item2id``, ``*.user2index`` and similar files.
        kind: what a token is, for errors.

    Raises:
        ValueError: a line is malformed, a token or an index occurs twice, or an index is missing.
    """
    token_at: dict[int, str] = {}
    tokens: set[str] = set()
    for number, line in read_lines(path):
        token, tab, index = line.partition("\t")
        if not (tab and index.isascii() and index.isdecimal() and len(index) < 10):
            raise ValueError(f"{path}:{number}: {line[:80]!r} is not a token, a tab and an index; repair the line")
        check_id(token, f"{path}:{number}", kind)
        if token in tokens or int(index) in token_at:
            raise ValueError(
                f"{path}:{number}: {kind} {token!r} or index {index} occurs on an earlier line; remove one of the two"
            )
        tokens.add(token)
        token_at[int(index)] = token
    gap = next((index for index in range(len(token_at)) if index not in token_at), None)
    if gap is not None:
        raise ValueError(f"{path}: index {gap} of {len(token_at)} is missing; number from 0 without gaps")
    return [token_at[index] for index in range(len(token_at))]


def index_tokens(
    files: SourceFiles, opened: Mapping[str, np.ndarray], histories: Histories, named: Iterable[int] = ()
) -> list[str]:
    """Use the indexes as item tokens if no file names the items.

    The rows of the matrices say how many items there are; without a matrix, histories and other files name them together.

    Args:
        files: files of the folder, for errors.
        opened: modality -> matrix.
        histories: user index -> item indexes.
        named: indexes in other files, also of items that nobody interacted with.

    Raises:
        ValueError: the matrices have different numbers of rows, or there is no matrix and the indexes have gaps.
    """
    rows = {len(matrix) for matrix in opened.values()}
    if not rows:
        seen = {item for history in histories.values() for item in history} | {*named}
        count = max(seen, default=-1) + 1
        if count - len(seen) > (0 not in seen):  # some number items from 1
            gap = next(index for index in range(1, count) if index not in seen)
            raise ValueError(
                f"{files.histories[0]}: item indexes have gaps: they end at {count - 1}, and no file knows item {gap}; add "
                "a file that names the items"
            )
        rows = {count}
    if len(rows) > 1:
        names = " and ".join(path.name for path in files.features.values())
        raise ValueError(f"{names} have {' and '.join(map(str, sorted(rows)))} rows; use files of one item list")
    return [str(index) for index in range(rows.pop())]


def with_user_tokens(histories: Histories, files: SourceFiles, items: int) -> list[tuple[str, Sequence[int]]]:
    """Return the histories with user tokens, in the order of the indexes; without a token file the index is the token.

    Args:
        histories: user index -> item indexes.
        files: files of the folder.
        items: number of items.

    Raises:
        ValueError: there are no interactions, or a user or an item has no token.
    """
    source = files.histories[0]
    if not histories:
        raise ValueError(f"{source} holds no interactions; copy the file again")
    users = read_index(files.users, "user token") if files.users else None
    for user, history in histories.items():
        problem = None
        if max(history) >= items:
            problem = f"user {user} has item {max(history)}, but items end at {items - 1}"
        elif users is not None and user >= len(users):
            problem = f"user {user} has no token: {files.users} ends at {len(users) - 1}"
        if problem:
            raise ValueError(f"{source}: {problem}; use files of one version of the data")
    return [(users[user] if users else str(user), histories[user]) for user in sorted(histories)]


def in_use(histories: Histories, items: int) -> np.ndarray:
    """Return ``[items]`` bool: whether an item has interactions."""
    used = np.zeros(items, dtype=bool)
    for history in histories.values():
        used[np.asarray(history)] = True
    return used


def write_interactions(path: Path, users: Iterable[tuple[str, Sequence[int]]], items: Sequence[str]) -> None:
    """Write ``X.inter``; the timestamp is the position in the history.

    Args:
        path: file to write.
        users: (user token, item indexes) of each user.
        items: item tokens by index.
    """

    def rows() -> Iterator[str]:
        yield "user_id:token\titem_id:token\ttimestamp:float"
        for user, history in users:
            yield from (f"{user}\t{items[item]}\t{position}" for position, item in enumerate(history))

    write_lines(path, rows())


def write_texts(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write ``X.item``, and cut cells that are too long at a space.

    Args:
        path: file to write.
        header: columns as ``name:type``.
        rows: cleaned cells of each row.
    """
    write_lines(path, ("\t".join(map(cut_cell, row)) for row in [header, *rows]))


def write_features(
    build: Build,
    kind: str,
    opened: Mapping[str, np.ndarray],
    files: Mapping[str, Path],
    items: Sequence[str],
    used: np.ndarray,
    progress: bool,
) -> dict[str, FeatureReport]:
    """Write the matrices, one row per index, with their item list and manifest; rows of zeros become rows of NaN.

    Args:
        build: builder of the data set folder.
        kind: kind of the source, for the manifest.
        opened: modality -> matrix.
        files: modality -> file of the matrix.
        items: item tokens by index.
        used: ``[N]`` bool, items with interactions.
        progress: show bars.
    """
    rows = np.arange(len(items))
    features = {
        modality: matrices.write_matrix(
            build, modality, matrix, files[modality], rows, items, used, zeros_are_missing=True, progress=progress
        )
        for modality, matrix in opened.items()
    }
    if features:
        write_lines(build.path("items.txt"), items)
        write_json(build.path("features.json"), matrices.provenance(features, files, kind))
    return features
