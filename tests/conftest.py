"""What holds for every test: one thread, a bare command line, an empty folder to stand in."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_THREADS = 1  # for tiny networks more are slower, on a busy machine by far

# Before torch and numpy are imported, and for the processes that tests start.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    _set = os.environ.get(_name, "")
    os.environ[_name] = str(min(int(_set), MAX_THREADS) if _set.isdecimal() and int(_set) else MAX_THREADS)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads are very slow on a busy machine
# The same code in those processes, wherever they stand and whatever else is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _bare_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures of a module or the session: RecBole parses sys.argv, and writes where it stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", sys.argv[:1])
        patch.chdir(tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def _bare_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every test: its own empty folder, and a command line of the program's name only."""
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, ``shared/data`` beside the checkout.

    Without it a test is skipped, but fails where CI is set: green must not mean that nothing was tested.
    """
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        (pytest.fail if in_ci() else pytest.skip)("the real data are not there: ../shared/data")
    return folder


@pytest.fixture(autouse=True)
def _level_of_the_log() -> None:
    """Set the level of the log to Python's, since RecBole sets it for the whole process and tests read what is logged."""
    logging.getLogger().setLevel("WARNING")
