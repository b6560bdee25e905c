"""What the published folders have in common: users and items are indexes, and small files say which token an index is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_prep.amazon.cleaning import MAX_CELL
from dataset_prep.importers import matrices
from dataset_prep.importers.build import Build, FeatureReport, check_id, read_lines, write_lines
from recbole_qbert.utils.io import write_json

BY_POSITION = "position in the user's history, from 0: the source gives the order only"
Histories = Mapping[int, Sequence[int]]  # user index -> item indexes in order; never empty, users in order


@dataclass(frozen=True)
class Found:
    """The files of a folder by what they are; ``None`` where one is missing.

    Attributes:
        histories: files of the interactions.
        items: token and index of the items.
        users: token and index of the users.
        texts: texts of the items.
        features: modality -> matrix, one row an index.
        codes: modality -> code tokens of the items.
        missing: names of optional files that are not there.
        ignored: names of files that are left aside -> why.
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
        """All files that are read."""
        single = [path for path in (self.items, self.users, self.texts) if path]
        return [*self.histories, *single, *self.features.values(), *self.codes.values()]


def locate(source: Path, dataset: str, ending: str) -> Path:
    """The folder that holds ``<dataset><ending>``: ``source`` itself or ``source/<dataset>``.

    Raises:
        FileNotFoundError: neither does; names the data sets that are there.
    """
    for folder in (source, source / dataset):
        if (folder / f"{dataset}{ending}").is_file():
            return folder
    there = sorted({path.name[: -len(ending)] for path in [*source.glob(f"*{ending}"), *source.glob(f"*/*{ending}")]})
    hint = f"data sets that are there: {', '.join(there[:5])}" if there else f"there is no *{ending} at all"
    raise FileNotFoundError(f"{source} holds no {dataset}{ending}, nor does a folder {dataset} in it; {hint}")


def claim(found: dict[str, Path], modality: str, path: Path) -> None:
    """Note the file of a modality.

    Raises:
        ValueError: it has one already.
    """
    if modality in found:
        raise ValueError(f"{found[modality]} and {path.name} are both of {modality}; leave one of them in the folder")
    found[modality] = path


def read_index(path: Path, kind: str) -> list[str]:
    """Tokens by index from lines of ``token<TAB>index``.

    Args:
        path: ``*.item2id``, ``*.user2index`` and the like.
        kind: what a token is, for errors.

    Raises:
        ValueError: a malformed line, a token or an index twice, or an index left out.
    """
    token_at: dict[int, str] = {}
    tokens: set[str] = set()
    for number, line in read_lines(path):
        token, tab, index = line.partition("\t")
        if not (tab and index.isascii() and index.isdecimal() and len(index) < 10):
            raise ValueError(f"{path}:{number}: {line[:80]!r} is not a token, a tab and an index")
        check_id(token, f"{path}:{number}", kind)
        if token in tokens or int(index) in token_at:
            raise ValueError(f"{path}:{number}: {kind} {token!r} or index {index} stands on an earlier line already")
        tokens.add(token)
        token_at[int(index)] = token
    absent = next((index for index in range(len(token_at)) if index not in token_at), None)
    if absent is not None:
        raise ValueError(f"{path}: index {absent} is left out of {len(token_at)}; indexes run from 0 without gaps")
    return [token_at[index] for index in range(len(token_at))]


def numbered(found: Found, opened: Mapping[str, np.ndarray], histories: Histories) -> list[str]:
    """Item tokens where no file names them: the indexes, as many as the matrices have rows.

    Raises:
        ValueError: the matrices have different numbers of rows, or there is none and the indexes have gaps.
    """
    rows = {len(matrix) for matrix in opened.values()}
    if not rows:
        seen = {item for history in histories.values() for item in history}
        if seen != set(range(len(seen))):
            raise ValueError(f"{found.histories[0]}: item indexes have gaps, and no file says how many items there are")
        rows = {len(seen)}
    if len(rows) > 1:
        names = " and ".join(path.name for path in found.features.values())
        raise ValueError(f"{names} have {' and '.join(map(str, sorted(rows)))} rows; they belong to different item lists")
    return [str(index) for index in range(rows.pop())]


def named(histories: Histories, found: Found, items: int) -> list[tuple[str, Sequence[int]]]:
    """Histories with user tokens, in the order of the indexes; without a file of tokens the indexes are the tokens.

    Raises:
        ValueError: no interactions, or the index of a user or an item that has no token.
    """
    source = found.histories[0]
    if not histories:
        raise ValueError(f"{source} holds no interactions")
    users = read_index(found.users, "user token") if found.users else None
    for user, history in histories.items():
        strange = None
        if max(history) >= items:
            strange = f"user {user} has item {max(history)}, but items end at {items - 1}"
        elif users is not None and user >= len(users):
            strange = f"user {user} has no token: {found.users} ends at {len(users) - 1}"
        if strange:
            raise ValueError(f"{source}: {strange}; the files belong to different versions of the data")
    return [(users[user] if users else str(user), histories[user]) for user in sorted(histories)]


def in_use(histories: Histories, items: int) -> np.ndarray:
    """``[items]`` bool: somebody interacts with the item."""
    used = np.zeros(items, dtype=bool)
    for history in histories.values():
        used[np.asarray(history)] = True
    return used


def write_interactions(path: Path, users: Iterable[tuple[str, Sequence[int]]], items: Sequence[str]) -> None:
    """Write ``X.inter``; the timestamp is the position in the history."""

    def rows() -> Iterator[str]:
        yield "user_id:token\titem_id:token\ttimestamp:float"
        for user, history in users:
            yield from (f"{user}\t{items[item]}\t{place}" for place, item in enumerate(history))

    write_lines(path, rows())


def write_texts(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write ``X.item``; cells are cleaned already, and too long ones are cut at a space."""

    def cut(cell: str) -> str:
        return cell if len(cell) <= MAX_CELL else cell[:MAX_CELL].rsplit(" ", 1)[0]

    write_lines(path, ("\t".join(map(cut, row)) for row in [header, *rows]))


def write_features(
    build: Build,
    kind: str,
    opened: Mapping[str, np.ndarray],
    files: Mapping[str, Path],
    items: Sequence[str],
    used: np.ndarray,
    progress: bool,
) -> dict[str, FeatureReport]:
    """Write the matrices, one row an index, and the two files that go with them; rows of zeros become rows of NaN."""
    rows = np.arange(len(items))
    features = {
        modality: matrices.bring_in(
            build, modality, matrix, files[modality], rows, items, used, zeros_are_missing=True, progress=progress
        )
        for modality, matrix in opened.items()
    }
    if features:
        write_lines(build.path("items.txt"), items)
        write_json(build.path("features.json"), matrices.provenance(features, files, kind))
    return features
