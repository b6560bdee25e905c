"""recbole_qbert.utils.environment: with which code and on what a result was made."""

import subprocess

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
