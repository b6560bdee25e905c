"""The HTML page on one training: what it shows is what the model and the data say."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import recbole_qbert
from recbole_qbert.experiments.report import curve_svg
from recbole_qbert.experiments.report.training_page import metric_rows, write_training_page
from tests.helpers_recbole import QUICK, write_dataset

pytestmark = pytest.mark.pipeline
NAME = "Tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set whose items have titles that must be escaped, and pictures."""
    folder = write_dataset(tmp_path_factory.mktemp("data"), NAME)
    items = (folder / NAME / f"{NAME}.items.txt").read_text().split()
    rows = "".join(f"{item}\t<b>ball</b> {item}\n" for item in items)
    (folder / NAME / f"{NAME}.item").write_text("item_id:token\ttitle:token_seq\n" + rows)
    for number, item in enumerate(items[::2]):
        picture = folder / NAME / "images" / item / "0.jpg"
        picture.parent.mkdir(parents=True)
        Image.fromarray(np.full((9, 9, 3), 7 * number, np.uint8)).save(picture)
    return folder


@pytest.fixture(scope="module")
def page(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    settings = {key: value for key, value in QUICK["QBERT4Rec"].items() if key not in ("show_progress", "state")}
    properties = settings | {"pretrain_epochs": 2}
    figures = recbole_qbert.train(NAME, data, tmp_path_factory.mktemp("runs"), properties, baselines=["Pop"])
    path = write_training_page(figures, data)
    assert path == Path(figures["checkpoints"]["finetune"]).with_name("report.html")
    return path.read_text(encoding="utf-8"), figures


def test_it_shows_every_model_with_its_metrics(page):
    text, figures = page
    assert [name for name, _ in metric_rows(figures)] == [
        "QBERT4Rec",
        "QBERT4Rec + co-occurrence",
        "Pop",
        "QBERT4Rec, history left out",
        "QBERT4Rec + co-occurrence, history left out",
        "Pop, history left out",
    ]
    for name, metrics in metric_rows(figures):
        assert f">{name}</th>" in text and f"{metrics['ndcg@10']:.4f}" in text


def test_recommendations_are_those_of_the_model_and_mark_the_item_that_was_bought_next(page, data):
    text, figures = page
    recommender = recbole_qbert.Recommender.load(figures["checkpoints"]["finetune"], data_path=data)
    shown = re.findall(r"<h3>User (\w+)</h3>.*?bought next.*?</div>(.*?recommended.*?)</ol>", text, re.DOTALL)
    assert len(shown) == 6
    for user, ranked in shown:
        lines = [line.split("\t") for line in (data / NAME / f"{NAME}.inter").read_text().splitlines()[1:]]
        history = [item for owner, item, _ in sorted(lines, key=lambda line: float(line[2])) if owner == user]
        wanted = [r.item for r in recommender.recommend([history[:-1]], 10)[0]]
        assert re.findall(r"&lt;b&gt;ball&lt;/b&gt; (\w+)", ranked) == wanted
        assert (history[-1] in wanted) == ('class="hit"' in ranked)


def test_titles_are_escaped_and_pictures_are_inside(page):
    text, _ = page
    assert html.escape("<b>ball</b>") in text and "<b>ball</b>" not in text
    assert "data:image/jpeg;base64," in text and not re.search(r'(src|href)="https?:', text)


def test_a_curve_of_each_stage_marks_its_best_epoch(page):
    text, figures = page
    assert text.count("<polyline") == 4 and text.count("<circle") == 2
    assert f"Fine-tuning: validation ndcg@10 {figures['valid']['ndcg@10']:.4f}<" in text


def test_one_point_is_a_curve():
    assert curve_svg.curve_svg([(0, 0.5)], "epoch", "ndcg").count("<text") >= 3
