"""recbole_qbert.utils.environment: with which code and on what a result was made."""

import subprocess
import sys

from recbole_qbert.utils import environment


def test_the_revision_is_of_the_code_and_results_in_the_repository_do_not_change_it(tmp_path, monkeypatch):
    for name in ("recbole_qbert/utils/environment.py", "docs/results.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "recbole_qbert/utils/environment.py"))
    assert environment.revision() is None

    def git(*words):
        me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        return subprocess.run(["git", "-C", str(tmp_path), *me, *words], check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    first = git("rev-parse", "HEAD")[:12]
    assert environment.revision() == first
    (tmp_path / "docs/results.json").write_text("{}")
    assert environment.revision() == first
    git("commit", "-qam", "results")
    assert environment.revision() == first
    (tmp_path / "recbole_qbert/utils/environment.py").write_text("changed = True")
    assert environment.revision() == f"{first}+"


PEAKS = """
import subprocess, sys
import numpy as np
from recbole_qbert.utils.environment import peak_memory_mb

before = peak_memory_mb()
if sys.argv[1:]:
    print(before)
    sys.exit()
held = np.ones(300 * 2**17)
child = subprocess.run([sys.executable, __file__, "child"], capture_output=True, text=True, check=True)
print(before, peak_memory_mb(), child.stdout)
"""


def test_peak_memory_is_of_the_process_itself_and_not_of_the_one_that_started_it(tmp_path):
    script = tmp_path / "peaks.py"
    script.write_text(PEAKS)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    before, after, child = map(int, run.stdout.split())
    assert 290 < after - before < 320
    assert child < before + 60
