"""Commands that are killed at random moments end in the same bytes when they are run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.interruptions import STEPS, run_all


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)
def test_a_second_run_equals_one_that_was_not_killed(tmp_path: Path) -> None:
    names = [step.name for step in STEPS]
    results = list(run_all(2 * len(names), 3, tmp_path / "all", names, print))
    assert [name for name, _, _ in results] == 2 * names
    assert not [result for result in results if result[2]]
