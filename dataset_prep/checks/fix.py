"""Write a mended copy of a data set.

The copy is another folder of the same name, so that ``data_path`` points at one or the other. The original is only read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from dataset_prep.checks.atomic_lines import open_text
from dataset_prep.checks.encodings import detect, without_mark
from dataset_prep.checks.findings import FaultCounter, Finding
from dataset_prep.checks.mending import MENDS, AtomicFile, count_encoding, write
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.item_features import READ_AS_MISSING

ATOMIC = (".inter", ".item", ".user", ".kg", ".link", ".net")
REPORTS = ("prepare.json", "import.json")  # they describe the files as they were
Sources = dict[str, Callable[[], Iterable[str]]]  # ending of a file -> its ids
SID_FIELD = "item_id"  # of .sid files, whatever the column of items is called elsewhere


def fix(
    data_path: Path, dataset: str, target: Path, *, form: AtomicFormat | None = None, drop_bad_rows: bool = False
) -> list[Finding]:
    """Write a copy of a data set in which everything mechanical is mended.

    Mended are: encoding (the copy is in UTF-8), byte order marks, line ends, blank lines, empty fields beyond the header,
    stray quotes at the start of a cell, carriage returns in texts, white space around ids, rows that repeat user, item and
    time of an earlier one (which stays), several ``.item`` rows of one item (the first value of each column stays), and the
    order of rows where RecBole would get it wrong. Everything else stays as it is, also rows that RecBole cannot use.

    Args:
        data_path: folder that holds the data set's folder.
        dataset: name of the data set.
        target: folder to write the copy's folder into.
        form: how the atomic files are written; default: as RecBole's defaults say.
        drop_bad_rows: leave out the rows of atomic files that RecBole cannot use and that cannot be mended.

    Returns:
        What was mended, with counts and first lines of the original.

    Raises:
        FileNotFoundError: there is no ``.inter`` file.
        ValueError: the copy exists already, or a file lacks a column or is not text.
    """
    form = form or AtomicFormat()
    source, copy = Path(data_path) / dataset, Path(target) / dataset
    if not (source / f"{dataset}.inter").is_file():
        raise FileNotFoundError(f"{source / f'{dataset}.inter'} is missing; 'doctor' explains")
    if copy.exists():
        raise ValueError(f"{copy} exists; remove it, or name another folder by --fix_to")
    files = _atomic_files(source, dataset, form)
    items_list = source / f"{dataset}.items.txt"
    trims = _trims_of(files, items_list, form)
    temporary = copy.with_name(f".{dataset}.{os.getpid()}.part")
    temporary.mkdir(parents=True)
    try:
        findings = list[Finding]()
        for file in files:
            findings += write(file.with_trims(trims), temporary / file.path.name, drop=drop_bad_rows).findings()
        if items_list.is_file():
            findings += _write_list(items_list, temporary / items_list.name, form, trims[form.item_field]).findings()
        done = {items_list.name, *(file.path.name for file in files)}
        _copy_others(source, dataset, temporary, done | (set(REPORTS) if findings else set()))
        _copy_images(source / "images", temporary / "images", trims[form.item_field])
        temporary.rename(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return findings


def _atomic_files(source: Path, dataset: str, form: AtomicFormat) -> list[AtomicFile]:
    """Return the atomic files of a data set and its ``.sid``, which is always separated by tabs."""
    paths = [source / f"{dataset}{ending}" for ending in ATOMIC]
    files = [AtomicFile.of(path, form) for path in paths if path.is_file()]
    ids = source / f"{dataset}.sid"
    if ids.is_file():
        files.append(AtomicFile.of(ids, AtomicFormat(encoding=form.encoding)))
    return files


# ---------------------------------------------------------------------------------------------- ids
def _trims_of(files: list[AtomicFile], items_list: Path, form: AtomicFormat) -> dict[str, dict[str, str]]:
    """Return name of an id column -> the ids to trim."""
    users: Sources = {file.path.suffix: partial(_ids, file, form.user_field) for file in files}
    items: Sources = {file.path.suffix: partial(_ids, file, form.item_field) for file in files if file.path.suffix != ".sid"}
    items |= {file.path.suffix: partial(_ids, file, SID_FIELD) for file in files if file.path.suffix == ".sid"}
    if items_list.is_file():
        items[".txt"] = partial(_listed, items_list, form)
    trims = _trims(items)
    return {form.user_field: _trims(users), SID_FIELD: trims, form.item_field: trims}


def _trims(sources: Sources) -> dict[str, str]:
    """Return id with white space around it -> the id without, where that is no other id.

    In a file that has both of them they may mean different things, and both stay. But of two items of which only the one
    without white space has a row in the ``.item`` file, the other one is none.

    Args:
        sources: ending of a file -> its ids.
    """
    padded = {token: _bare(token) for ids in sources.values() for token in ids() if token != token.strip()}
    padded = {token: bare for token, bare in padded.items() if bare not in READ_AS_MISSING}
    if not padded:
        return {}
    forms: dict[str, set[str]] = {}  # id without white space -> it and those with
    for token, bare in padded.items():
        forms.setdefault(bare, {bare}).add(token)
    wanted = set().union(*forms.values())
    found = {ending: wanted.intersection(ids()) for ending, ids in sources.items()}
    listed = found.get(".item", set())
    clashing = {
        bare
        for ending, tokens in found.items()
        for bare, each in forms.items()
        if len(each & tokens) > 1 and not (ending != ".item" and each & listed == {bare})
    }
    return {token: bare for token, bare in padded.items() if bare not in clashing}


def _bare(token: str) -> str:
    """Strip white space, and a stray quote behind it, which csv takes for a part of the id."""
    bare = token.strip()
    return bare[1:].strip() if bare.startswith('"') and bare.count('"') == 1 else bare


def _ids(file: AtomicFile, name: str) -> Iterator[str]:
    """Yield the ids in a column; none if there is no such column."""
    place = file.position(name)
    if place is not None:
        yield from (row.cells[place] for row in file.rows() if row.sound)


# ---------------------------------------------------------------------------------------------- other files
def _listed(path: Path, form: AtomicFormat) -> list[str]:
    """Read a list of items; blank lines at its end are none of it."""
    encoding, _ = detect(path, form.encoding)
    with open_text(path, encoding) as handle:
        return without_mark(handle.read(), encoding).rstrip().splitlines()


def _write_list(path: Path, target: Path, form: AtomicFormat, trims: Mapping[str, str]) -> FaultCounter:
    """Write the mended list of items."""
    encoding, guessed = detect(path, form.encoding)
    mends = FaultCounter(path, MENDS, encoding=encoding)
    with open_text(path, encoding) as handle:
        text = handle.read()
    count_encoding(path, encoding, guessed, mends)
    lines = without_mark(text, encoding).split("\n")
    while len(lines) > 1 and not lines[-1].strip() and not lines[-2].strip():
        lines.pop()
        mends.note("blank", len(lines) + 1)
    for number, line in enumerate(lines, 1):
        bare = line.removesuffix("\r")
        if bare != line:
            mends.note("crlf", number)
        if bare in trims:
            mends.note("spaces", number, bare)
        lines[number - 1] = trims.get(bare, bare)
    target.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    return mends


def _copy_others(source: Path, dataset: str, target: Path, without: set[str]) -> None:
    """Copy the other files of a data set; matrices are linked, because no command writes into one."""
    for path in sorted(source.iterdir()):
        known = path.name.startswith(f"{dataset}.") or path.name in ("images.json", "images.jsonl", *REPORTS)
        if known and path.is_file() and path.name not in without:
            (_link if path.suffix == ".npy" else shutil.copy2)(path, target / path.name)


def _copy_images(source: Path, target: Path, trims: Mapping[str, str]) -> None:
    """Link the pictures of all items."""
    for folder in sorted(source.iterdir()) if source.is_dir() else ():
        name = trims.get(folder.name, folder.name)
        if folder.is_dir():
            copy = target / (folder.name if (source / name).exists() else name)
            shutil.copytree(folder, copy, copy_function=_link)


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
