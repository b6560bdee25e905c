"""One HTML page on one training: metrics, learning curves, users with recommendations, the tree of semantic IDs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_qbert.config.schema import MODEL
from recbole_qbert.data.histories import Histories
from recbole_qbert.experiments.report.catalog import Catalog, thumbnails
from recbole_qbert.experiments.report.curve_svg import curve_svg
from recbole_qbert.experiments.report.html import Html, join, tag
from recbole_qbert.experiments.report.html_tables import line, table
from recbole_qbert.experiments.report.id_explorer import explorer
from recbole_qbert.experiments.report.page import Section, document
from recbole_qbert.serving.recommender import Recommendation, Recommender
from recbole_qbert.utils.io import atomic_write, json_lines

USERS, HISTORY, TOP_K, LEVELS = 6, 8, 10, 4
SHORTEST = 4  # items of a history that is shown
STAGES = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}


def write_training_page(figures: Mapping[str, Any], data_path: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` beside the checkpoint of a training.

    Args:
        figures: what ``recbole_qbert.train`` or ``finetune`` returned.
        data_path: folder that holds the data set's folder.

    Returns:
        The file.
    """
    dataset, checkpoint = figures["dataset"], Path(figures["checkpoints"]["finetune"])
    recommender = Recommender.load(checkpoint, data_path=data_path)
    ids = recommender.semantic_ids
    catalog = Catalog.read(Path(data_path), dataset, ids.items, recommender.form, recommender.titles)
    users = _sample(Histories(Path(data_path) / dataset / f"{dataset}.inter", recommender.form))
    recommendations = recommender.recommend([history[:-1] for _, history in users], TOP_K)
    code_sets = [some["code_set"] for some in figures["semantic_ids"]["code_sets"]]
    tree = explorer(ids, [] if code_sets == ["given"] else code_sets, catalog)
    shown = [*(item for _, history in users for item in history), *(r.item for some in recommendations for r in some)]
    pictures, _ = thumbnails(catalog, shown)
    picture_class = {item: f"u{number}" for number, item in enumerate(pictures)}
    style = tree.style + "".join(f".u{n}{{background-image:url({uri})}}" for n, uri in enumerate(pictures.values()))
    tiles = _Tiles(catalog.titles, picture_class)
    sections = [
        Section("results", "Results", "Test metrics", _results(figures)),
        Section("curves", "Curves", "Learning curves", _curves(figures)),
        Section("users", "Users", "What users bought, and what the model recommends", _users(users, recommendations, tiles)),
        Section("ids", "Semantic IDs", "The tree of semantic IDs", join(_health(figures), tree.markup)),
    ]
    notes = [*tree.notes, *catalog.missing]
    subtitle = f"{len(ids.items):,} items; seed {figures['seed']}; {figures['parameters']:,} parameters"
    path = checkpoint.with_name("report.html")
    with atomic_write(path) as temporary:
        page = document(f"{MODEL} on {dataset}", subtitle, sections, "; ".join(notes) or f"checkpoint: {checkpoint}", style)
        temporary.write_text(page, encoding="utf-8")
    return path


def metric_rows(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """Return name and test metrics of every model of a training, as RecBole evaluates and with the history left out."""
    tested = {MODEL: (figures["test"], figures["test_history_excluded"])}
    if "test_with_prior" in figures:
        tested[f"{MODEL} + co-occurrence"] = (figures["test_with_prior"], figures["test_with_prior_history_excluded"])
    baselines = figures.get("baselines", {})
    tested |= {name: (metrics["test"], metrics["test_history_excluded"]) for name, metrics in baselines.items()}
    as_recbole = [(name, plain) for name, (plain, _) in tested.items()]
    return as_recbole + [(f"{name}, history left out", excluded) for name, (_, excluded) in tested.items()]


def _results(figures: Mapping[str, Any]) -> Html:
    rows = metric_rows(figures)
    names = list(rows[0][1])
    best = {name: max(metrics[name] for _, metrics in rows) for name in names}
    lines = []
    for title, metrics in rows:
        cells = [tag("b", f"{v:.4f}") if v == best[name] else f"{v:.4f}" for name in names for v in [metrics[name]]]
        lines.append(line(title, cells))
    return table("One seed, all items ranked.", ["model", *names], lines)


def _curves(figures: Mapping[str, Any]) -> Html:
    charts = []
    for stage, file in figures["checkpoints"].items():
        epochs = json_lines(Path(file).with_suffix(".jsonl"))
        metric = next((key for key in (epochs or [{}])[0] if key not in ("epoch", "loss", "seconds", "best")), None)
        if metric is None:
            continue
        scores = [epoch[metric] for epoch in epochs]
        best = scores.index(max(scores))
        for key, mark in ((metric, best), ("loss", None)):
            label = f"{STAGES[stage]}: {'validation ' + metric if key == metric else 'training loss'}"
            chart = curve_svg([(epoch["epoch"], epoch[key]) for epoch in epochs], "epoch", label, mark)
            charts.append(tag("figure", chart, tag("figcaption", label)))
    return tag("div", *charts, class_="plots") if charts else tag("p", "No log of epochs was found.")


def _health(figures: Mapping[str, Any]) -> Html:
    ids = figures["semantic_ids"]
    parts = [f"{ids['unique']:,} different IDs for {ids['items']:,} items"]
    for some in ids["code_sets"]:
        used = ", ".join(f"{share:.0%}" for share in some["usage_per_level"])
        parts.append(f"{some['code_set']}: codes used per level {used}")
    return tag("p", "; ".join(parts) + ".", class_="quiet")


def _sample(histories: Histories) -> list[tuple[str, list[str]]]:
    """Return a few users with their histories, evenly spread over those that are long enough."""
    long_enough = [user for user in histories if len(user[1]) >= SHORTEST]
    step = max(len(long_enough) // USERS, 1)
    return long_enough[::step][:USERS]


class _Tiles:
    """Items as pictures with titles."""

    def __init__(self, titles: Mapping[str, str], picture_class: Mapping[str, str]) -> None:
        self.titles, self.picture_class = titles, picture_class

    def of(self, item: str, note: str = "", marked: bool = False) -> Html:
        picture = self.picture_class.get(item)
        return tag(
            "li",
            tag("i", class_=f"pic {picture or 'none'}"),
            tag("span", self.titles.get(item, item)),
            tag("small", note) if note else "",
            class_="hit" if marked else None,
        )


def _first_codes(semantic_id: str) -> str:
    """Shorten an ID of many levels to the first code set's."""
    codes = semantic_id.replace("><", "> <").split()
    return "".join(codes[:LEVELS]) + ("…" if len(codes) > LEVELS else "")


def _users(
    users: Sequence[tuple[str, Sequence[str]]], recommendations: Sequence[Sequence[Recommendation]], tiles: _Tiles
) -> Html:
    """Show each user's history, the item that was held out for the test, and the model's top items."""
    blocks = [
        tag(
            "p",
            "The model reads a history without its last item, which is the one to find. It is marked where it is among the "
            f"{TOP_K} best.",
        )
    ]
    for (user, history), top in zip(users, recommendations, strict=True):
        *read, target = history
        earlier = len(read) - HISTORY
        past = [tiles.of(item) for item in read[-HISTORY:]]
        if earlier > 0:
            past.insert(0, tag("li", tag("small", f"{earlier} earlier items")))
        ranked = [tiles.of(r.item, _first_codes(r.semantic_id), r.item == target) for r in top]
        blocks.append(
            tag(
                "div",
                tag("div", tag("h3", f"User {user}"), tag("ol", *past, class_="tiles")),
                tag("div", tag("h3", "bought next"), tag("ol", tiles.of(target), class_="tiles")),
                tag("div", tag("h3", "recommended"), tag("ol", *ranked, class_="tiles ranked")),
                class_="user",
            )
        )
    return join(*blocks)
