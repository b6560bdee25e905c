"""Convert published data sets to a data set folder: ``.inter``, ``.item``, features, ``.sid``, ``import.json``."""

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
    """Detect the kind of a folder: ``mql4grec``, ``unisrec`` or ``arrays``.

    MQL4GRec folders also hold UniSRec's files, so MQL4GRec is tested first.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder is of no known kind.
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; give the folder of the published files")
    for kind, ending in (("mql4grec", _MQL4GREC), ("unisrec", _UNISREC)):
        if any(next(source.glob(pattern), None) for pattern in (f"*{ending}", f"*/*{ending}")):
            return kind
    if next(source.glob("*.npy"), None) and not next(source.glob("*.inter"), None):
        return "arrays"
    raise ValueError(
        f"{source} is of no known kind: there is no *{_MQL4GREC} (MQL4GRec, LC-Rec), no *{_UNISREC} (UniSRec, VQ-Rec, "
        "MISSRec) and no *.npy with ids; a folder with X.inter needs no import"
    )
