"""Patches of RecBole 1.2.1 for numpy 2, pandas 3, scipy 1.13 and later, and for environments without ray.

One patch an upstream problem. Each leaves the results of older versions as they are.

* :func:`without_ray` - ``recbole.quick_start`` imports ray, of which RecBole accepts no version for Python 3.12 and later.
* :func:`numpy_names` - ``Config`` restores names of numpy by way of names that numpy 2 removed.
* :func:`elementwise_length` - ``Series.agg(len)`` is one number in pandas 3.
* :func:`filled_lists`, :func:`filled_columns` - ``df[column].fillna(inplace=True)`` changes nothing in pandas 3.
* :func:`updatable_dok` - graph models need a private method that scipy 1.13 removed.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

Replace = Callable[[Any, str, Callable[[Any], Any]], None]


class _LazyTune(ModuleType):
    """``ray.tune`` for RecBole, which calls ``report`` at the end of every trial, also of hyperopt (quick_start.py:223)."""

    @staticmethod
    def report(**metrics: Any) -> None:
        """Report to ray in a ray worker, whose process has imported ray; do nothing elsewhere."""
        if "ray" in sys.modules:
            importlib.import_module("ray.tune").report(**metrics)


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Let ``recbole.quick_start.quick_start`` be imported without ray (quick_start.py:20; RecBole#1820, PR#2078).

    RecBole uses ``tune.report`` only. ray 2.6.3, the last version that it accepts, has no wheel
    for Python 3.12, uses ``np.bool8`` and needs ``pkg_resources``. The stand-in is there while the module is imported, and
    not afterwards.
    """
    real = {name: sys.modules.get(name) for name in ("ray", "ray.tune")}
    stand_in, tune = ModuleType("ray"), _LazyTune("ray.tune")
    stand_in.tune = tune  # type: ignore[attr-defined]
    sys.modules |= {"ray": stand_in, "ray.tune": tune}
    try:
        yield
    finally:
        for name, module in real.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def apply(replace: Replace) -> None:
    """Apply every patch but :func:`without_ray`; a second call changes nothing.

    Args:
        replace: ``patches.replace``.
    """
    numpy_names(replace)
    elementwise_length()
    quick_tables()
    filled_columns(replace)
    updatable_dok()


def numpy_names(replace: Replace) -> None:
    """Give numpy the names back that RecBole uses (configurator.py:625; RecBole#1604, #1714, PR#2203)."""
    replace(importlib.import_module("recbole.config").Config, "compatibility_settings", lambda _: _set_numpy_names)


def _set_numpy_names(_: Any) -> None:
    names = {
        "bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_,
        "str": np.str_, "long": np.int_, "unicode": np.str_,
    }  # fmt: skip
    for name, value in names.items():
        if name not in vars(np):
            setattr(np, name, value)


def elementwise_length() -> None:
    """Count the elements of each cell in ``Series.agg(len)``, as pandas 2 did.

    pandas 3 hands the whole column to the function (dataset.py:712, :792, :809, :1217, sequential_dataset.py:163,
    kg_dataset.py:316). None of these modules takes the length of a Series itself.
    """
    for name in ("dataset", "sequential_dataset", "kg_dataset"):
        module: Any = importlib.import_module(f"recbole.data.dataset.{name}")
        module.len = _length


def _length(value: Any) -> Any:
    return value.map(len) if isinstance(value, pd.Series) else len(value)


def quick_tables() -> None:
    """Read atomic files by pandas' parser in C, and empty cells of lists as empty text (dataset.py:481, :501)."""
    module: Any = importlib.import_module("recbole.data.dataset.dataset")
    if not isinstance(module.pd, _Pandas):
        module.pd = _Pandas("pandas")


class _Pandas(ModuleType):
    """pandas as ``recbole.data.dataset.dataset`` uses it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **options: Any) -> Any:
        """Read a table; lists are split next, and have text in every cell.

        RecBole asks for the parser in Python: seven times as slow, and every fourth number with many digits is one unit in
        the last place off. It is left to files whose columns are separated by more than one character, to those that the
        parser in C refuses (numbers such as ``1_000``), and to those with NUL, where that one cuts cells off.
        """
        table = None
        if options.get("engine") == "python" and len(options.get("delimiter") or "") == 1 and not _has_nul(args[0]):
            with contextlib.suppress(ValueError):
                table = pd.read_csv(*args, **options | {"engine": "c", "float_precision": "round_trip"})
        if table is None:
            table = pd.read_csv(*args, **options)
        return table.fillna({name: "" for name in table.columns if str(name).endswith("_seq")})


def _has_nul(path: str) -> bool:
    with open(path, "rb") as file:
        return any(b"\0" in part for part in iter(lambda: file.read(1 << 20), b""))


def filled_columns(replace: Replace) -> None:
    """Fill missing cells as ``Dataset._fill_nan`` means to (dataset.py:634)."""
    replace(importlib.import_module("recbole.data.dataset.dataset").Dataset, "_fill_nan", lambda _: _fill_nan)


def _fill_nan(self: Any) -> None:
    types = importlib.import_module("recbole.utils").FeatureType
    for name in self.feat_name_list:
        table = getattr(self, name)
        for field in table:
            kind = self.field2type[field]
            if kind is types.TOKEN:
                table[field] = table[field].fillna(0)
            elif kind is types.FLOAT:
                table[field] = table[field].fillna(table[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if kind is types.TOKEN_SEQ else np.float64)
                table[field] = table[field].map(lambda cell, empty=empty: empty if isinstance(cell, float) else cell)


def updatable_dok() -> None:
    """Restore ``dok_matrix._update``, which scipy 1.13 removed: LightGCN, NGCF and others (RecBole#2034, #2090, #2185)."""
    if not hasattr(sparse.dok_matrix, "_update"):
        sparse.dok_matrix._update = lambda self, data: self._dict.update(data)
