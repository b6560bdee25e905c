"""Data as others publish them, turned into a data set folder: ``.inter``, ``.item``, features, ``.sid``, ``import.json``."""

from __future__ import annotations

from pathlib import Path

from dataset_prep.importers.arrays import arrays
from dataset_prep.importers.build import FeatureReport, ImportReport
from dataset_prep.importers.mql4grec import MARK as _MQL4GREC
from dataset_prep.importers.mql4grec import mql4grec
from dataset_prep.importers.unisrec import MARK as _UNISREC
from dataset_prep.importers.unisrec import unisrec

__all__ = ["FeatureReport", "ImportReport", "arrays", "detect", "mql4grec", "unisrec"]


def detect(source: Path) -> str:
    """What kind of folder this is: ``mql4grec``, ``unisrec`` or ``arrays``.

    MQL4GRec folders hold UniSRec's files, too; their own come first.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: none of these.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is no folder")
    for kind, ending in (("mql4grec", _MQL4GREC), ("unisrec", _UNISREC)):
        if any(next(source.glob(pattern), None) for pattern in (f"*{ending}", f"*/*{ending}")):
            return kind
    if next(source.glob("*.npy"), None) and not next(source.glob("*.inter"), None):
        return "arrays"
    raise ValueError(
        f"{source} is of no known kind: there is no *{_MQL4GREC} (MQL4GRec, LC-Rec), no *{_UNISREC} (UniSRec, VQ-Rec, "
        "MISSRec) and no *.npy with ids; a folder with X.inter needs no import"
    )
