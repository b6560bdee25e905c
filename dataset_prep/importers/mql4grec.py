"""Import folders of MQL4GRec, and of LC-Rec, whose format it uses.

The format was verified in the published preprocessing and in published files: ``D.inter.json`` (user index -> item indexes
in order), ``D.item2id`` and ``D.user2id`` (token, tab, index), ``D.item.json`` (index -> title, description, brand and
categories, these joined by commas; an empty text is ``.``; lists and the text of lists occur), ``D.emb-<model>-td.npy``
(text) and ``D.emb-<model>.npy`` (image) with one row an index, ``D.index_lemb.json`` and ``D.index_vitemb.json`` (index ->
code tokens, lower case for text, upper case for image).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.amazon.cleaning import clean_categories, clean_text
from dataset_prep.amazon.field_values import leaves, strings
from dataset_prep.importers import folders, matrices, shared_ids
from dataset_prep.importers.build import Build, ImportReport
from dataset_prep.importers.folders import SourceFiles
from recbole_qbert.data.item_features import open_matrix
from recbole_qbert.quantization.semantic_ids import LARGEST, SemanticIDs, prefixes_of, require_unique
from recbole_qbert.utils.io import sha256

MARK = ".inter.json"
ITEM_HEADER = ("item_id:token", "title:token_seq", "brand:token", "categories:token_seq", "description:token_seq")
TEXTS = ("title", "brand", "categories", "description")
MODALITIES = ("text", "image")  # the order of their code sets
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_CODE = re.compile(r"<([A-Za-z])_([0-9]{1,9})>")


def mql4grec(
    source: Path,
    dataset: str,
    output: Path,
    *,
    name: str | None = None,
    reallocate: bool = False,
    progress: bool = True,
) -> ImportReport:
    """Convert an MQL4GRec folder to ``<output>/<name>/``.

    Histories keep their order; the source has no times. If ``item2id`` or ``user2id`` is missing, the indexes are the
    tokens. ``X.item`` and ``X.sid`` have the items with interactions. Feature files have a row for every index; a row of
    zeros becomes a row of NaN. ``X.sid`` is not written if two items share an ID, because nothing could distinguish these
    items, unless ``reallocate`` gives such items other IDs (`shared_ids`).

    Args:
        source: the folder, or its parent.
        dataset: name that its files start with.
        output: folder of data sets (RecBole's ``data_path``).
        name: name of the written data set; ``dataset`` by default.
        reallocate: give items that share an ID different ones, and fill IDs that end early: code 0 of a level that only some
            items have says that an item had none, and the codes of this level are raised by one.
        progress: show bars.

    Raises:
        FileNotFoundError: there is no such folder, or a required file is missing.
        ValueError: a file is malformed, indexes do not fit, or the output folder holds files of another origin.
    """
    files = classify_files(folders.locate(Path(source), dataset, MARK), dataset)
    name = name or dataset
    histories = read_histories(files.histories[0])
    opened = {modality: open_matrix(path) for modality, path in files.features.items()}
    if files.items:
        items = folders.read_index(files.items, "item token")
    else:
        named = [int(index) for path in (files.texts, *files.codes.values()) if path for index in _read_json(path)]
        items = folders.index_tokens(files, opened, histories, named)
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
        semantic_ids, problems = _write_ids(build, files, opened, items, used, reallocate) if files.codes else (None, [])
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
        parts = {key: _parts(fields.get(key), f"{path}: item {index}: {key}") for key in TEXTS}
        title, brand, description = (clean_text(" ".join(parts[key])) for key in ("title", "brand", "description"))
        categories = parts["categories"]
        if categories == (fields.get("categories"),):  # a text, in which commas separate
            categories = tuple(categories[0].split(","))
        yield (
            items[index],
            "" if title == "." else title,
            brand,
            clean_categories(categories),
            "" if description == "." else description,
        )


def _parts(value: object, where: str) -> tuple[str, ...]:
    """Return the texts of a field that is a text, a number, a list of these, the text of a list, or null.

    Raises:
        ValueError: the field holds an object, whose texts would be lost.
    """
    try:
        if any(isinstance(leaf, dict) for leaf in leaves(value)):
            raise ValueError(f"found {str(value)[:60]!r}")
        return strings(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; write a text or a list of texts") from None


def _check_within(path: Path, content: dict[str, Any], items: Sequence[str]) -> None:
    too_large = next((index for index in content if int(index) >= len(items)), None)
    if too_large is not None:
        raise ValueError(
            f"{path}: item {too_large} is beyond the index, which ends at {len(items) - 1}; use files of one version"
        )


def _write_ids(
    build: Build,
    files: SourceFiles,
    opened: Mapping[str, np.ndarray],
    items: Sequence[str],
    used: np.ndarray,
    reallocate: bool,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Write ``X.sid``, text codes first; return ``(counts, warnings)``, without counts if the IDs cannot be used."""
    modalities = [modality for modality in MODALITIES if modality in files.codes]
    sets = [_read_codes(files.codes[modality], items, reallocate)[used] for modality in modalities]
    source = " and ".join(path.name for path in files.codes.values())
    prefixes = [letter for number, codes in enumerate(sets) for letter in prefixes_of(codes.shape[1], number)]
    codes = np.concatenate(sets, axis=1)
    tokens = tuple(items[index] for index in np.flatnonzero(used))
    size = int(codes.max(initial=0)) + 1
    moved = {}
    if reallocate:
        bare = [token for token, row in zip(tokens, codes, strict=True) if (row < 0).all()]
        if len(bare) > 1:
            raise ValueError(f"{source}: {len(bare)} items have no ID (first: {bare[0]}); make IDs with 'quantize'")
        rows = np.flatnonzero(used)
        code_sets = [
            shared_ids.CodeSet(own, opened.get(modality), rows) for modality, own in zip(modalities, sets, strict=True)
        ]
        new = shared_ids.separate(code_sets, tokens, size)
        moved = {"moved": int((new != codes).any(1).sum())}
        codes = new
    ids = SemanticIDs(tokens, codes, tuple(prefixes), size)
    distinct = len(np.unique(codes, axis=0))
    try:
        require_unique(ids, source)
    except ValueError as error:
        share = int(shared_ids.sharing(codes).sum())
        return None, [
            f"no {build.name}.sid was written: {distinct} different IDs for {len(tokens)} items, and {share} of them share "
            f"theirs ({error}); or import with --reallocate, which gives such items the nearest free IDs"
        ]
    ids.save(build.path("sid"))
    return {"items": len(tokens), "unique": distinct, "levels": prefixes, "codes": ids.size, **moved}, []


def _read_codes(path: Path, items: Sequence[str], fill: bool) -> np.ndarray:
    """Read the codes of the items as ``[N, K]`` int16, -1 for an item without codes.

    Args:
        path: the file.
        items: item tokens by index.
        fill: fill IDs that end early, as `mql4grec` says of ``reallocate``.

    Raises:
        ValueError: an index is beyond the items, a token is malformed, or items have different levels.
    """
    content = _read_json(path)
    _check_within(path, content, items)
    matches = {index: _matches(tokens) for index, tokens in content.items()}
    letters = _letters(path, content)
    if fill:
        letters = max(("".join(match[1] for match in row) for row in matches.values()), key=len, default=letters)
    codes = np.full((len(items), len(letters)), -1, dtype=np.int16)
    lengths = {len(row) for row in matches.values()}
    for index, row in matches.items():
        own = "".join(match[1] for match in row)
        if not own or (not letters.startswith(own) if fill else own != letters):
            raise ValueError(
                f"{path}: item {index} has {str(content[index])[:60]}; give it the levels of the first item, {letters}"
                + ("" if fill or len(lengths) == 1 else ", or import with --reallocate, which fills IDs that end early")
            )
        row_codes = [int(match[2]) for match in row]
        row_codes = [code + (level >= min(lengths)) for level, code in enumerate(row_codes)] if fill else row_codes
        row_codes += [0] * (len(letters) - len(row))
        if max(row_codes) > LARGEST:
            raise ValueError(f"{path}: item {index} has code {max(row_codes)}, beyond the largest allowed code, {LARGEST}")
        codes[int(index)] = row_codes
    return codes


def _matches(tokens: object) -> list[re.Match[str]]:
    """Match the tokens of an ID; empty if one is malformed."""
    matches = [_CODE.fullmatch(str(token)) for token in tokens] if isinstance(tokens, list) else []
    return [match for match in matches if match] if None not in matches else []


def _letters(path: Path, content: dict[str, Any]) -> str:
    """Return the level letters of the first item."""
    first = next(iter(content.values()), None)
    matches = _matches(first)
    if not matches or len(matches) > 26:
        raise ValueError(f"{path}: the first ID is {str(first)[:60]}; write an ID as a list like ['<a_1>', '<b_2>']")
    return "".join(match[1] for match in matches)
