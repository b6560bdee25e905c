"""Import folders of UniSRec, and of VQ-Rec and MISSRec, which share its format.

The format was verified in the published preprocessing and readers: ``D.train.inter``, ``D.valid.inter`` and
``D.test.inter`` (header ``user_id:token item_id_list:token_seq item_id:token``; users and items are indexes; one row per
prefix, longest first, cut to the newest 50), ``D.feat1CLS`` (text), ``D.feat2CLS`` (the same with dropped words, for
pretraining) and MISSRec's ``D.feat3CLS`` (image; a row of zeros is an item without one): float32 without a header, row r
for item r. ``D.item2index``, ``D.user2index`` (token, tab, index) and ``D.text`` (header ``item_id:token text:token_seq``)
come with the published data sets, but the newest preprocessing does not write them. UniSRec and VQ-Rec are 768 wide,
MISSRec 512.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from dataset_prep.amazon.cleaning import clean_text
from dataset_prep.importers import folders, matrices
from dataset_prep.importers.build import Build, ImportReport, read_lines
from dataset_prep.importers.folders import Histories, SourceFiles
from recbole_qbert.utils.io import sha256

MARK = ".train.inter"
PARTS = ("train", "valid", "test")
HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"
TEXT_HEADER = "item_id:token\ttext:token_seq"
MODALITY_OF = {"1": "text", "3": "image"}  # by the digit of feat1CLS
Row = tuple[int, int, list[int]]  # line, user, items of the prefix and the target


def unisrec(
    source: Path,
    dataset: str,
    output: Path,
    *,
    name: str | None = None,
    width: int = 768,
    image_width: int | None = None,
    progress: bool = True,
) -> ImportReport:
    """Convert a UniSRec, VQ-Rec or MISSRec folder to ``<output>/<name>/``.

    Histories are rebuilt from the prefix rows, which must agree with each other. The last item is the target of the test
    file, the second to last that of the validation file, so that leave-one-out gives the published split. If ``item2index``
    or ``user2index`` is missing, the indexes are the tokens. Feature files have a row for every index; a row of zeros
    becomes a row of NaN.

    Args:
        source: the folder, or its parent.
        dataset: name that its files start with.
        output: folder of data sets (RecBole's ``data_path``).
        name: name of the written data set; ``dataset`` by default.
        width: numbers per row of ``feat1CLS``; checked against the size of the file.
        image_width: numbers per row of ``feat3CLS``; ``width`` by default.
        progress: show bars.

    Raises:
        FileNotFoundError: there is no such folder, or a required file is missing.
        ValueError: a file is malformed, prefixes disagree, indexes or widths do not fit, or the output folder holds files of
            another origin.
    """
    files = classify_files(folders.locate(Path(source), dataset, MARK), dataset)
    name = name or dataset
    histories, untested = read_histories(files.histories, progress)
    items = folders.read_index(files.items, "item token") if files.items else None
    widths = {"text": width, "image": image_width or width}
    opened = {
        modality: matrices.open_raw(path, len(items) if items else None, widths[modality])
        for modality, path in files.features.items()
    }
    items = folders.index_tokens(files, opened, histories) if items is None else items
    users = folders.with_user_tokens(histories, files, len(items))
    used = folders.in_use(histories, len(items))
    warnings = []
    if untested:
        warnings.append(f"{untested} users have no row in {dataset}.test.inter: leave-one-out tests them on an earlier item")
    with Build(Path(output) / name, name) as build:
        folders.write_interactions(build.path("inter"), users, items)
        texts: dict[str, str] = {}
        if files.texts:
            texts, unknown = _read_texts(files.texts, items)
            rows = [(item, texts.get(item, "")) for item, is_used in zip(items, used, strict=True) if is_used]
            folders.write_texts(build.path("item"), ("item_id:token", "title:token_seq"), rows)
            if unknown:
                warnings.append(f"{files.texts.name}: {unknown} texts are of items that {dataset}.item2index does not name")
        features = folders.write_features(build, "unisrec", opened, files.features, items, used, progress)
        return build.finish(
            ImportReport(
                kind="unisrec",
                dataset=name,
                users=len(users),
                items=int(used.sum()),
                interactions=sum(map(len, histories.values())),
                timestamps=folders.BY_POSITION,
                sources={path.name: sha256(path) for path in files.files()},
                items_unused=int((~used).sum()),
                texts=sum(bool(texts.get(item)) for item, is_used in zip(items, used, strict=True) if is_used),
                features=features,
                missing=files.missing,
                ignored=files.ignored,
                warnings=(*matrices.suspicions(features), *warnings),
            )
        )


def classify_files(folder: Path, dataset: str) -> SourceFiles:
    """Determine the role of each file of a folder.

    Raises:
        FileNotFoundError: the validation or the test file is missing.
        ValueError: a set merged from several domains, or two files of the same modality.
    """
    merged = folder / f"{dataset}.pt_datasets"
    if merged.exists():
        domains = merged.read_text(encoding="utf-8").strip()
        raise ValueError(
            f"{folder} is a pretraining set merged from {domains}; import each of these domains from its own folder"
        )
    parts = tuple(folder / f"{dataset}.{part}.inter" for part in PARTS)
    for path in parts:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; it holds the last items of the histories")
    features: dict[str, Path] = {}
    ignored: dict[str, str] = {}
    for path in sorted(folder.glob(f"{dataset}.*")):
        kind = re.fullmatch(r"feat(\d)(CLS|Mean)", path.name[len(dataset) + 1 :])
        if kind and kind[1] in MODALITY_OF:
            folders.assign(features, MODALITY_OF[kind[1]], path)
        elif kind:
            ignored[path.name] = "features of texts with dropped words, used by UniSRec's pretraining only"
        elif path.name.endswith((".index", ".filtered_id")):
            ignored[path.name] = "part of VQ-Rec's faiss index; build semantic IDs from the features instead"
    single = {ending: folder / f"{dataset}.{ending}" for ending in ("item2index", "user2index", "text")}
    existing = {ending: path if path.is_file() else None for ending, path in single.items()}
    missing = [single[ending].name for ending, path in existing.items() if not path]
    missing += [f"{dataset}.feat{digit}CLS ({kind})" for digit, kind in MODALITY_OF.items() if kind not in features]
    if existing["text"] and not existing["item2index"]:
        ignored[single["text"].name] = f"names items by token, and without {single['item2index'].name} no item has one"
        existing["text"] = None
    return SourceFiles(
        histories=parts,
        items=existing["item2index"],
        users=existing["user2index"],
        texts=existing["text"],
        features=features,
        codes={},
        missing=tuple(missing),
        ignored=ignored,
    )


def read_histories(parts: Sequence[Path], progress: bool) -> tuple[Histories, int]:
    """Read the histories by user index; the rows of one user are in memory at a time.

    Args:
        parts: the training, validation and test file.
        progress: show bars.

    Returns:
        ``(histories, number of users without a row in the last part)``.

    Raises:
        ValueError: a file is malformed, rows of a user are not consecutive, or rows disagree.
    """
    histories: dict[int, array[int]] = {}
    seen: set[int] = set()
    for path in parts:
        seen = set()
        for user, group in groupby(_read_rows(path, progress), key=lambda row: row[1]):
            rows = list(group)
            if user in seen:
                raise ValueError(f"{path}:{rows[0][0]}: rows of user {user} are not consecutive; sort the file by user")
            seen.add(user)
            histories[user] = _extended(histories.get(user, array("i")), rows, path)
    return histories, len(histories) - len(seen)


def _read_rows(path: Path, progress: bool) -> Iterator[Row]:
    size = path.stat().st_size
    with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for number, line in read_lines(path):
            bar.update(len(line) + 1)
            if number == 1:
                if line != HEADER:
                    raise ValueError(f"{path}:1: header is {line!r}; it must be {HEADER!r}")
                continue
            cells = line.split("\t")
            tokens = [cells[0], *cells[1].split(" "), cells[2]] if len(cells) == 3 else [""]
            if not all(token.isascii() and token.isdecimal() and len(token) < 10 for token in tokens):
                raise ValueError(
                    f"{path}:{number}: {line[:80]!r} is not a user index, a tab, item indexes, a tab and an item index"
                )
            yield number, int(tokens[0]), [int(token) for token in tokens[1:]]


def _extended(history: array[int], rows: Sequence[Row], path: Path) -> array[int]:
    """Extend a history by the rows of one user, which are published longest first; both orders are accepted.

    Raises:
        ValueError: a row disagrees with the shorter ones.
    """
    mismatches = []
    for order in (rows[::-1], rows):
        result = array("i", history)
        mismatch = next((row for row in order if not _extend(result, row[2])), None)
        if mismatch is None:
            return result
        mismatches.append(mismatch)
    line, user, _ = mismatches[0]
    raise ValueError(
        f"{path}:{line}: the items of user {user} do not continue this user's shorter rows; the file is damaged or of "
        "another kind; copy it again"
    )


def _extend(history: array[int], row: list[int]) -> bool:
    """Extend ``history`` by a row of prefix and target; false if the prefix does not agree with the history."""
    prefix, length = array("i", row[:-1]), len(history)
    if len(prefix) >= length:  # the whole history, perhaps more
        agrees = prefix[:length] == history
        history.extend(row[length:] if agrees else ())
    else:  # cut to the newest items
        agrees = prefix == history[length - len(prefix) :]
        history.extend(row[-1:] if agrees else ())
    return agrees


def _read_texts(path: Path, items: Sequence[str]) -> tuple[dict[str, str], int]:
    """Read the cleaned text by item token, and count the lines about other items.

    Raises:
        ValueError: an item occurs twice, or no line is about an item.
    """
    tokens = set(items)
    texts: dict[str, str] = {}
    unknown = 0
    for number, line in read_lines(path):
        item, _, text = line.partition("\t")
        if number == 1 and line == TEXT_HEADER:
            continue
        if item in texts:
            raise ValueError(f"{path}:{number}: item {item!r} already has a text; remove one of the two")
        if item in tokens:
            texts[item] = clean_text(text)
        else:
            unknown += 1
    if not texts:
        raise ValueError(f"{path} has no text of any item in the index; give the file of this data set")
    return texts, unknown
