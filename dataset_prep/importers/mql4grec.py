"""Folders of MQL4GRec, and of LC-Rec, whose format it took over.

Verified in the published preprocessing and in published files: ``D.inter.json`` (user index -> item indexes in order),
``D.item2id`` and ``D.user2id`` (token, tab, index), ``D.item.json`` (index -> title, description, brand and categories,
these joined by commas; an empty text is ``.``), ``D.emb-<model>-td.npy`` (text) and ``D.emb-<model>.npy`` (image) with one
row an index, ``D.index_lemb.json`` and ``D.index_vitemb.json`` (index -> code tokens, lower case for text, upper case for
image).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.amazon.cleaning import clean_categories, clean_text
from dataset_prep.importers import folders, matrices
from dataset_prep.importers.build import Build, ImportReport
from dataset_prep.importers.folders import Found
from recbole_qbert.data.item_features import open_matrix
from recbole_qbert.quantization.semantic_ids import LARGEST, SemanticIDs, prefixes_of, require_unique
from recbole_qbert.utils.io import sha256

MARK = ".inter.json"
ITEM_HEADER = ("item_id:token", "title:token_seq", "brand:token", "categories:token_seq", "description:token_seq")
MODALITIES = ("text", "image")  # the order of their code sets
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_CODE = re.compile(r"<([A-Za-z])_([0-9]{1,9})>")


def mql4grec(source: Path, dataset: str, output: Path, *, name: str | None = None, progress: bool = True) -> ImportReport:
    """Turn an MQL4GRec folder into ``<output>/<name>/``.

    Histories keep their order; the source has no times. Where ``item2id`` or ``user2id`` is missing, the indexes
    themselves are the tokens. ``X.item`` and ``X.sid`` have the items with interactions; feature files have every index, a
    row of zeros becomes a row of NaN. IDs that two items share are not written: nothing could tell these items apart.

    Args:
        source: the folder, or the one above it.
        dataset: name its files start with.
        output: folder of data sets (RecBole's ``data_path``).
        name: of the written data set; ``dataset`` by default.
        progress: show bars.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is malformed, indexes do not fit, or the target folder holds files of another origin.
    """
    found = look(folders.locate(Path(source), dataset, MARK), dataset)
    name = name or dataset
    histories = read_histories(found.histories[0])
    opened = {modality: open_matrix(path) for modality, path in found.features.items()}
    items = folders.read_index(found.items, "item token") if found.items else folders.numbered(found, opened, histories)
    for modality, matrix in opened.items():
        if len(matrix) != len(items):
            raise ValueError(
                f"{found.features[modality]} has {len(matrix)} rows for {len(items)} items; embeddings and index belong to "
                "different versions of the data"
            )
    users = folders.named(histories, found, len(items))
    used = folders.in_use(histories, len(items))
    with Build(Path(output) / name, name) as build:
        folders.write_interactions(build.path("inter"), users, items)
        texts = 0
        if found.texts:
            rows = list(_text_rows(found.texts, items, used))
            texts = sum(bool(title or description) for _, title, _, _, description in rows)
            folders.write_texts(build.path("item"), ITEM_HEADER, rows)
        features = folders.write_features(build, "mql4grec", opened, found.features, items, used, progress)
        identifiers, trouble = _write_ids(build, found.codes, items, used) if found.codes else (None, [])
        return build.finish(
            ImportReport(
                kind="mql4grec",
                dataset=name,
                users=len(users),
                items=int(used.sum()),
                interactions=sum(map(len, histories.values())),
                timestamps=folders.BY_POSITION,
                sources={path.name: sha256(path) for path in found.files()},
                items_unused=int((~used).sum()),
                texts=texts,
                features=features,
                semantic_ids=identifiers,
                missing=found.missing,
                ignored=found.ignored,
                warnings=(*matrices.doubts(features), *trouble),
            )
        )


def look(folder: Path, dataset: str) -> Found:
    """Sort the files of a folder by what they are.

    Raises:
        ValueError: two files of the same modality.
    """
    features: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{dataset}.emb-*.npy")):
        # The published scripts end the name of a text matrix in '-td' (title, description), of an image matrix in nothing.
        folders.claim(features, "text" if re.search(r"-td\w*\.npy$", path.name) else "image", path)
    codes: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{dataset}.index*.json")):
        folders.claim(codes, "image" if _letters(path, _read_json(path)).isupper() else "text", path)
    single = {ending: folder / f"{dataset}.{ending}" for ending in ("item2id", "user2id", "item.json")}
    there = {ending: path if path.is_file() else None for ending, path in single.items()}
    missing = [single[ending].name for ending, path in there.items() if not path]
    missing += [f"{dataset}.emb-*.npy ({modality})" for modality in MODALITIES if modality not in features]
    missing += [f"{dataset}.index*.json ({modality})" for modality in MODALITIES if modality not in codes]
    same = [folder / f"{dataset}.{part}.inter" for part in ("train", "valid", "test")]
    return Found(
        histories=(folder / f"{dataset}{MARK}",),
        items=there["item2id"],
        users=there["user2id"],
        texts=there["item.json"],
        features=features,
        codes=codes,
        missing=tuple(missing),
        ignored={path.name: "holds the same interactions, one row a prefix" for path in same if path.exists()},
    )


def read_histories(path: Path) -> dict[int, list[int]]:
    """User index -> item indexes in order; users without any are left out.

    Raises:
        ValueError: a history is no list of indexes.
    """
    content = _read_json(path)
    for user, history in content.items():
        if not isinstance(history, list) or not all(type(item) is int and item >= 0 for item in history):
            raise ValueError(f"{path}: user {user} has {str(history)[:60]}; a history is a list of item indexes from 0")
    return {int(user): history for user, history in content.items() if history}


def _read_json(path: Path) -> dict[str, Any]:
    """An object whose keys are indexes.

    Raises:
        ValueError: it is not, or a key stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"one of the keys {str([key for key, _ in pairs])[:80]} stands twice")
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be an object whose keys are indexes")
    for key in content:
        if not _INDEX.fullmatch(key):
            raise ValueError(f"{path}: key {key[:60]!r} is no index; keys are numbers from 0")
    return content


def _text_rows(path: Path, items: Sequence[str], used: np.ndarray) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of ``X.item``; items without an entry get empty cells."""
    content = _read_json(path)
    _check_within(path, content, items)
    for index in np.flatnonzero(used):
        fields = content.get(str(index), {})
        if not isinstance(fields, dict):
            raise ValueError(f"{path}: item {index} is {str(fields)[:60]!r}; it must be an object with title and so on")
        raw = {key: str(fields.get(key) or "") for key in ("title", "brand", "categories", "description")}
        title, brand, description = (clean_text(raw[key]) for key in ("title", "brand", "description"))
        yield (
            items[index],
            "" if title == "." else title,
            brand,
            clean_categories(raw["categories"].split(",")),
            "" if description == "." else description,
        )


def _check_within(path: Path, content: dict[str, Any], items: Sequence[str]) -> None:
    beyond = next((index for index in content if int(index) >= len(items)), None)
    if beyond is not None:
        raise ValueError(f"{path}: item {beyond} is beyond the index, which ends at {len(items) - 1}")


def _write_ids(
    build: Build, files: dict[str, Path], items: Sequence[str], used: np.ndarray
) -> tuple[dict[str, Any] | None, list[str]]:
    """Write ``X.sid``, text codes first; ``(figures, warnings)``, no figures when the IDs cannot be used."""
    sets = [_read_codes(files[modality], items)[used] for modality in MODALITIES if modality in files]
    prefixes = [letter for number, codes in enumerate(sets) for letter in prefixes_of(codes.shape[1], number)]
    codes = np.concatenate(sets, axis=1)
    tokens = tuple(items[index] for index in np.flatnonzero(used))
    ids = SemanticIDs(tokens, codes, tuple(prefixes), int(codes.max(initial=0)) + 1)
    distinct = len(np.unique(codes, axis=0))
    try:
        require_unique(ids, " and ".join(path.name for path in files.values()))
    except ValueError as error:
        return None, [f"no {build.name}.sid was written: {distinct} different IDs for {len(tokens)} items ({error})"]
    ids.save(build.path("sid"))
    return {"items": len(tokens), "unique": distinct, "levels": prefixes, "codes": ids.size}, []


def _read_codes(path: Path, items: Sequence[str]) -> np.ndarray:
    """``[N, K]`` int16, -1 where an item has no codes.

    Raises:
        ValueError: an index beyond the items, a malformed token, or items with different levels.
    """
    content = _read_json(path)
    _check_within(path, content, items)
    letters = _letters(path, content)
    codes = np.full((len(items), len(letters)), -1, dtype=np.int16)
    for index, tokens in content.items():
        matches = [_CODE.fullmatch(str(token)) for token in tokens] if isinstance(tokens, list) else []
        if "".join(match[1] if match else "?" for match in matches) != letters:
            raise ValueError(f"{path}: item {index} has {str(tokens)[:60]}; the levels of the first item are {letters}")
        row = [int(match[2]) for match in matches if match]
        if max(row) > LARGEST:
            raise ValueError(f"{path}: item {index} has code {max(row)}, beyond the largest, {LARGEST}")
        codes[int(index)] = row
    return codes


def _letters(path: Path, content: dict[str, Any]) -> str:
    """Level letters of the first item, which are those of all."""
    first = next(iter(content.values()), None)
    matches = [_CODE.fullmatch(str(token)) for token in first] if isinstance(first, list) else []
    if not matches or None in matches or len(matches) > 26:
        raise ValueError(f"{path}: the first ID is {str(first)[:60]}; an ID is a list like ['<a_1>', '<b_2>']")
    return "".join(match[1] for match in matches if match)
