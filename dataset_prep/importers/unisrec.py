"""Folders of UniSRec, and of VQ-Rec and MISSRec, which share its format.

Verified in the published preprocessing and readers: ``D.train.inter``, ``D.valid.inter`` and ``D.test.inter`` (header
``user_id:token item_id_list:token_seq item_id:token``; users and items are indexes; one row a prefix, longest first, cut to
the newest 50), ``D.feat1CLS`` (text), ``D.feat2CLS`` (the same with words dropped, for pretraining) and MISSRec's
``D.feat3CLS`` (image; a row of zeros is an item without one): float32 without a header, row r for item r.
``D.item2index``, ``D.user2index`` (token, tab, index) and ``D.text`` (header ``item_id:token text:token_seq``) come with the
published data sets, but not out of the newest preprocessing. UniSRec and VQ-Rec are 768 wide, MISSRec 512.
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
from dataset_prep.importers.folders import Found, Histories
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
    """Turn a UniSRec, VQ-Rec or MISSRec folder into ``<output>/<name>/``.

    Histories are put together again from the prefix rows, which must agree with each other; their last item is the
    target of the test file, the last but one that of the validation file, so that leave-one-out gives the published
    split. Where ``item2index`` or ``user2index`` is missing, the indexes themselves are the tokens. Feature files have every
    index; a row of zeros becomes a row of NaN.

    Args:
        source: the folder, or the one above it.
        dataset: name its files start with.
        output: folder of data sets (RecBole's ``data_path``).
        name: of the written data set; ``dataset`` by default.
        width: numbers a row of ``feat1CLS``; checked against the size of the file.
        image_width: the same for ``feat3CLS``; ``width`` by default.
        progress: show bars.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is malformed, prefixes disagree, indexes or widths do not fit, or the target folder holds files of
            another origin.
    """
    found = look(folders.locate(Path(source), dataset, MARK), dataset)
    name = name or dataset
    histories, untested = read_histories(found.histories, progress)
    items = folders.read_index(found.items, "item token") if found.items else None
    widths = {"text": width, "image": image_width or width}
    opened = {
        modality: matrices.open_raw(path, len(items) if items else None, widths[modality])
        for modality, path in found.features.items()
    }
    items = folders.numbered(found, opened, histories) if items is None else items
    users = folders.named(histories, found, len(items))
    used = folders.in_use(histories, len(items))
    warnings = []
    if untested:
        warnings.append(
            f"{untested} users have no row in {dataset}.test.inter: leave-one-out tests them on an item of another part"
        )
    with Build(Path(output) / name, name) as build:
        folders.write_interactions(build.path("inter"), users, items)
        texts: dict[str, str] = {}
        if found.texts:
            texts, unknown = _read_texts(found.texts, items)
            kept = [(item, texts.get(item, "")) for item, there in zip(items, used, strict=True) if there]
            folders.write_texts(build.path("item"), ("item_id:token", "title:token_seq"), kept)
            if unknown:
                warnings.append(f"{found.texts.name}: {unknown} texts are of items that {dataset}.item2index does not name")
        features = folders.write_features(build, "unisrec", opened, found.features, items, used, progress)
        return build.finish(
            ImportReport(
                kind="unisrec",
                dataset=name,
                users=len(users),
                items=int(used.sum()),
                interactions=sum(map(len, histories.values())),
                timestamps=folders.BY_POSITION,
                sources={path.name: sha256(path) for path in found.files()},
                items_unused=int((~used).sum()),
                texts=sum(bool(texts.get(item)) for item, there in zip(items, used, strict=True) if there),
                features=features,
                missing=found.missing,
                ignored=found.ignored,
                warnings=(*matrices.doubts(features), *warnings),
            )
        )


def look(folder: Path, dataset: str) -> Found:
    """Sort the files of a folder by what they are.

    Raises:
        FileNotFoundError: the validation or the test file is missing.
        ValueError: a set merged from several domains, or two files of the same modality.
    """
    merged = folder / f"{dataset}.pt_datasets"
    if merged.exists():
        domains = merged.read_text(encoding="utf-8").strip()
        raise ValueError(f"{folder} is a pretraining set merged from {domains}; import each of these from its own folder")
    parts = tuple(folder / f"{dataset}.{part}.inter" for part in PARTS)
    for path in parts:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the last items of the histories stand there")
    features: dict[str, Path] = {}
    ignored: dict[str, str] = {}
    for path in sorted(folder.glob(f"{dataset}.*")):
        kind = re.fullmatch(r"feat(\d)(CLS|Mean)", path.name[len(dataset) + 1 :])
        if kind and kind[1] in MODALITY_OF:
            folders.claim(features, MODALITY_OF[kind[1]], path)
        elif kind:
            ignored[path.name] = "features of texts with words dropped, for UniSRec's pretraining only"
        elif path.name.endswith((".index", ".filtered_id")):
            ignored[path.name] = "belongs to VQ-Rec's faiss index; build semantic IDs from the features"
    single = {ending: folder / f"{dataset}.{ending}" for ending in ("item2index", "user2index", "text")}
    there = {ending: path if path.is_file() else None for ending, path in single.items()}
    missing = [single[ending].name for ending, path in there.items() if not path]
    missing += [f"{dataset}.feat{digit}CLS ({kind})" for digit, kind in MODALITY_OF.items() if kind not in features]
    if there["text"] and not there["item2index"]:
        ignored[single["text"].name] = f"is about tokens, and without {single['item2index'].name} no item has one"
        there["text"] = None
    return Found(
        histories=parts,
        items=there["item2index"],
        users=there["user2index"],
        texts=there["text"],
        features=features,
        codes={},
        missing=tuple(missing),
        ignored=ignored,
    )


def read_histories(parts: Sequence[Path], progress: bool) -> tuple[Histories, int]:
    """Histories by user index, and how many users the last part says nothing of; one user's rows are held at a time.

    Raises:
        ValueError: a malformed file, rows of a user that stand apart, or rows that disagree.
    """
    histories: dict[int, array[int]] = {}
    seen: set[int] = set()
    for path in parts:
        seen = set()
        for user, group in groupby(_read_rows(path, progress), key=lambda row: row[1]):
            rows = list(group)
            if user in seen:
                raise ValueError(f"{path}:{rows[0][0]}: rows of user {user} stand apart; sort the file by user")
            seen.add(user)
            histories[user] = _joined(histories.get(user, array("i")), rows, path)
    return histories, len(histories) - len(seen)


def _read_rows(path: Path, progress: bool) -> Iterator[Row]:
    size = path.stat().st_size
    with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for number, line in read_lines(path):
            bar.update(len(line) + 1)
            if number == 1:
                if line != HEADER:
                    raise ValueError(f"{path}:1: header is {line!r}; files of this kind begin with {HEADER!r}")
                continue
            cells = line.split("\t")
            tokens = [cells[0], *cells[1].split(" "), cells[2]] if len(cells) == 3 else [""]
            if not all(token.isascii() and token.isdecimal() and len(token) < 10 for token in tokens):
                raise ValueError(
                    f"{path}:{number}: {line[:80]!r} is not a user index, a tab, item indexes, a tab and an item index"
                )
            yield number, int(tokens[0]), [int(token) for token in tokens[1:]]


def _joined(history: array[int], rows: Sequence[Row], path: Path) -> array[int]:
    """The history so far, lengthened by the rows of one user; they are published longest first, but either order will do.

    Raises:
        ValueError: a row disagrees with the shorter ones.
    """
    refused = []
    for order in (rows[::-1], rows):
        result = array("i", history)
        wrong = next((row for row in order if not _take(result, row[2])), None)
        if wrong is None:
            return result
        refused.append(wrong)
    line, user, _ = refused[0]
    raise ValueError(
        f"{path}:{line}: the items of user {user} do not continue this user's shorter rows; the file is damaged or not of "
        "this kind"
    )


def _take(history: array[int], row: list[int]) -> bool:
    """Lengthen ``history`` by a row of prefix and target; false when the prefix is not what came before."""
    prefix, known = array("i", row[:-1]), len(history)
    if len(prefix) >= known:  # all that is known, perhaps more
        agrees = prefix[:known] == history
        history.extend(row[known:] if agrees else ())
    else:  # cut to the newest
        agrees = prefix == history[known - len(prefix) :]
        history.extend(row[-1:] if agrees else ())
    return agrees


def _read_texts(path: Path, items: Sequence[str]) -> tuple[dict[str, str], int]:
    """Cleaned text by item token, and how many lines are about other items.

    Raises:
        ValueError: an item twice, or no line is about an item.
    """
    known = set(items)
    texts: dict[str, str] = {}
    unknown = 0
    for number, line in read_lines(path):
        item, _, text = line.partition("\t")
        if number == 1 and line == TEXT_HEADER:
            continue
        if item in texts:
            raise ValueError(f"{path}:{number}: item {item!r} has a text already; leave one")
        if item in known:
            texts[item] = clean_text(text)
        else:
            unknown += 1
    if not texts:
        raise ValueError(f"{path} has no text of any item in the index; it belongs to another data set")
    return texts, unknown
