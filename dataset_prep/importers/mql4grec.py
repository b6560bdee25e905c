"""Import folders of MQL4GRec, and of LC-Rec, whose format it uses.

The format was verified in the published preprocessing and in published files: ``D.inter.json`` (user index -> item indexes
in order), ``D.item2id`` and ``D.user2id`` (token, tab, index), ``D.item.json`` (index -> title, description, brand and
categories, these joined by commas; an empty text is ``.``), ``D.emb-<model>-td.npy`` (text) and ``D.emb-<model>.npy``
(image) with one row an index, ``D.index_lemb.json`` and ``D.index_vitemb.json`` (index -> code tokens, lower case for text,
upper case for image).
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
from dataset_prep.importers.folders import SourceFiles
from recbole_qbert.data.item_features import open_matrix
from recbole_qbert.quantization.semantic_ids import LARGEST, SemanticIDs, prefixes_of, require_unique
from recbole_qbert.utils.io import sha256

MARK = ".inter.json"
ITEM_HEADER = ("item_id:token", "title:token_seq", "brand:token", "categories:token_seq", "description:token_seq")
MODALITIES = ("text", "image")  # the order of their code sets
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_CODE = re.compile(r"<([A-Za-z])_([0-9]{1,9})>")


def mql4grec(source: Path, dataset: str, output: Path, *, name: str | None = None, progress: bool = True) -> ImportReport:
    """Convert an MQL4GRec folder to ``<output>/<name>/``.

    Histories keep their order; the source has no times. If ``item2id`` or ``user2id`` is missing, the indexes are the
    tokens. ``X.item`` and ``X.sid`` have the items with interactions. Feature files have a row for every index; a row of
    zeros becomes a row of NaN. ``X.sid`` is not written if two items share an ID, because nothing could distinguish these
    items.

    Args:
        source: the folder, or its parent.
        dataset: name that its files start with.
        output: folder of data sets (RecBole's ``data_path``).
        name: name of the written data set; ``dataset`` by default.
        progress: show bars.

    Raises:
        FileNotFoundError: there is no such folder, or a required file is missing.
        ValueError: a file is malformed, indexes do not fit, or the output folder holds files of another origin.
    """
    files = classify_files(folders.locate(Path(source), dataset, MARK), dataset)
    name = name or dataset
    histories = read_histories(files.histories[0])
    opened = {modality: open_matrix(path) for modality, path in files.features.items()}
    items = folders.read_index(files.items, "item token") if files.items else folders.index_tokens(files, opened, histories)
    for modality, matrix in opened.items():
        if len(matrix) != len(items):
            raise ValueError(
                f"{files.features[modality]} has {len(matrix)} rows for {len(items)} items; use embeddings and index "
                "of one version of the data"
            )
    users = folders.with_user_tokens(histories, files, len(items))
    used = folders.in_use(histories, len(items))
    with Build(Path(output) / name, name) as build:
        folders.write_interactions(build.path("inter"), users, items)
        texts = 0
        if files.texts:
            rows = list(_text_rows(files.texts, items, used))
            texts = sum(bool(title or description) for _, title, _, _, description in rows)
            folders.write_texts(build.path("item"), ITEM_HEADER, rows)
        features = folders.write_features(build, "mql4grec", opened, files.features, items, used, progress)
        semantic_ids, problems = _write_ids(build, files.codes, items, used) if files.codes else (None, [])
        return build.finish(
            ImportReport(
                kind="mql4grec",
                dataset=name,
                users=len(users),
                items=int(used.sum()),
                interactions=sum(map(len, histories.values())),
                timestamps=folders.BY_POSITION,
                sources={path.name: sha256(path) for path in files.files()},
                items_unused=int((~used).sum()),
                texts=texts,
                features=features,
                semantic_ids=semantic_ids,
                missing=files.missing,
                ignored=files.ignored,
                warnings=(*matrices.suspicions(features), *problems),
            )
        )


def classify_files(folder: Path, dataset: str) -> SourceFiles:
    """Determine the role of each file of a folder.

    Raises:
        ValueError: two files of the same modality.
    """
    features: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{dataset}.emb-*.npy")):
        # The published scripts append '-td' (title, description) to the name of a text matrix, nothing to an image matrix.
        folders.assign(features, "text" if re.search(r"-td\w*\.npy$", path.name) else "image", path)
    codes: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{dataset}.index*.json")):
        folders.assign(codes, "image" if _letters(path, _read_json(path)).isupper() else "text", path)
    single = {ending: folder / f"{dataset}.{ending}" for ending in ("item2id", "user2id", "item.json")}
    existing = {ending: path if path.is_file() else None for ending, path in single.items()}
    missing = [single[ending].name for ending, path in existing.items() if not path]
    missing += [f"{dataset}.emb-*.npy ({modality})" for modality in MODALITIES if modality not in features]
    missing += [f"{dataset}.index*.json ({modality})" for modality in MODALITIES if modality not in codes]
    same = [folder / f"{dataset}.{part}.inter" for part in ("train", "valid", "test")]
    return SourceFiles(
        histories=(folder / f"{dataset}{MARK}",),
        items=existing["item2id"],
        users=existing["user2id"],
        texts=existing["item.json"],
        features=features,
        codes=codes,
        missing=tuple(missing),
        ignored={path.name: "holds the same interactions, one row per prefix" for path in same if path.exists()},
    )


def read_histories(path: Path) -> dict[int, list[int]]:
    """Read user index -> item indexes in order; users without interactions are left out.

    Raises:
        ValueError: a history is not a list of indexes.
    """
    content = _read_json(path)
    for user, history in content.items():
        if not isinstance(history, list) or not all(type(item) is int and item >= 0 for item in history):
            raise ValueError(
                f"{path}: user {user} has {str(history)[:60]}; write a history as a list of item indexes from 0"
            )
    return {int(user): history for user, history in content.items() if history}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object whose keys are indexes.

    Raises:
        ValueError: the file is anything else, or a key occurs twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError(f"one of the keys {str([key for key, _ in pairs])[:80]} occurs twice")
        return content

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
    """Yield the rows of ``X.item``; items without an entry get empty cells."""
    content = _read_json(path)
    _check_within(path, content, items)
    for index in np.flatnonzero(used):
        fields = content.get(str(index), {})
        if not isinstance(fields, dict):
            raise ValueError(
                f"{path}: item {index} is {str(fields)[:60]!r}; write it as an object with title, brand and so on"
            )
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
    too_large = next((index for index in content if int(index) >= len(items)), None)
    if too_large is not None:
        raise ValueError(
            f"{path}: item {too_large} is beyond the index, which ends at {len(items) - 1}; use files of one version"
        )


def _write_ids(
    build: Build, files: dict[str, Path], items: Sequence[str], used: np.ndarray
) -> tuple[dict[str, Any] | None, list[str]]:
    """Write ``X.sid``, text codes first; return ``(counts, warnings)``, without counts if the IDs cannot be used."""
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
    """Read the codes of the items as ``[N, K]`` int16, -1 for an item without codes.

    Raises:
        ValueError: an index is beyond the items, a token is malformed, or items have different levels.
    """
    content = _read_json(path)
    _check_within(path, content, items)
    letters = _letters(path, content)
    codes = np.full((len(items), len(letters)), -1, dtype=np.int16)
    for index, tokens in content.items():
        matches = [_CODE.fullmatch(str(token)) for token in tokens] if isinstance(tokens, list) else []
        if "".join(match[1] if match else "?" for match in matches) != letters:
            raise ValueError(f"{path}: item {index} has {str(tokens)[:60]}; give it the levels of the first item, {letters}")
        row = [int(match[2]) for match in matches if match]
        if max(row) > LARGEST:
            raise ValueError(f"{path}: item {index} has code {max(row)}, beyond the largest allowed code, {LARGEST}")
        codes[int(index)] = row
    return codes


def _letters(path: Path, content: dict[str, Any]) -> str:
    """Return the level letters of the first item; all items must have the same."""
    first = next(iter(content.values()), None)
    matches = [_CODE.fullmatch(str(token)) for token in first] if isinstance(first, list) else []
    if not matches or None in matches or len(matches) > 26:
        raise ValueError(f"{path}: the first ID is {str(first)[:60]}; write an ID as a list like ['<a_1>', '<b_2>']")
    return "".join(match[1] for match in matches if match)
