"""Make the tables of a suite, by kind: an object for ``table.json`` and the text of ``table.md``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from recbole_qbert.config.schema import MODEL
from recbole_qbert.experiments.suites import markdown, suite_spec
from recbole_qbert.experiments.suites.comparison import compare
from recbole_qbert.experiments.suites.trials import RunPlan
from recbole_qbert.recbole_integration import experiment, patches
from recbole_qbert.utils import environment
from recbole_qbert.utils.formatting import format_count
from recbole_qbert.utils.io import atomic_write, write_json

#: For ``table.json``, and lines of ``table.md`` under the title.
Made = tuple[Any, list[str]]

#: Property -> size of table 6 that it sets.
_SIZES = {
    "hidden_size": "width", "n_layers": "layers", "n_heads": "heads", "inner_size": "inner",
    "MAX_ITEM_LIST_LENGTH": "max_length",
}  # fmt: skip


def make(plan: RunPlan) -> str:
    """Write ``suite.json``, ``table.json`` and ``table.md`` into the suite's folder; return the Markdown."""
    content, lines = KINDS[plan.suite.kind](plan)
    paper = f" ({plan.suite.paper} of the paper)" if plan.suite.paper else ""
    note = [] if plan.suite.kind == "quality" or not plan.overrides else ["", f"- {markdown.of_every_row(plan.overrides)}"]
    text = "\n".join([f"# {plan.suite.title}: {plan.dataset}{paper}", "", *lines, *note]) + "\n"
    write_json(plan.folder / "suite.json", _about(plan))
    write_json(plan.folder / "table.json", content)
    with atomic_write(plan.folder / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def quality(plan: RunPlan) -> Made:
    """Compare models."""
    comparison = compare(plan)
    notes = markdown.footnotes(comparison)
    lines = markdown.markdown(comparison, notes, depth=bool(plan.suite.options.get("depth")))
    return asdict(comparison) | {"footnotes": notes}, lines


def statistics(plan: RunPlan) -> Made:
    """Count the data set as the models read it."""
    counts, copied = _statistics(plan), suite_spec.published(plan.suite.name, plan.dataset)
    rows = [["", *counts], [plan.dataset, *map(format_count, counts.values())]]
    rows += [
        [f"*{name} (copied)*", *(f"*{format_count(printed[count])}*" for count in counts)]
        for name, printed in copied.items()
    ]
    notes = ["", "- *(copied)*: printed in the paper."] if copied else []
    return {"suite": plan.suite.name, "statistics": counts, "copied": copied}, [*markdown.table(rows), *notes]


def embedding(plan: RunPlan) -> Made:
    """Measure the text, image and fused vectors of every model's items: distances, and places in one plane."""
    from recbole_qbert.experiments.suites import embedding as module

    rows: dict[str, list[Any]] = {spec.name: [] for spec in plan.suite.models}
    for trial in plan.trials:
        if trial.result() is not None:
            rows[trial.spec.name].append(trial.folder)
    measured = module.write(plan.folder, rows)
    wanted = ("seeds", "distances", "reason")
    distances = {row: {key: values[key] for key in wanted if key in values} for row, values in measured.items()}
    return {"suite": plan.suite.name, "rows": distances}, module.table(measured).splitlines()


def cost(plan: RunPlan) -> Made:
    """Measure parameters, operations and latency of models over a catalog as large as the data set's.

    Raises:
        ValueError: ``options`` or its ``sizes`` has a name that is not known.
    """
    from recbole_qbert.experiments.suites import cost as module

    options = dict(plan.suite.options)
    overrides = {_SIZES[key]: value for key, value in plan.overrides.items() if key in _SIZES}
    sizes = {**options.pop("sizes", {}), **overrides}
    for names, chosen in ((module.OPTIONS, options), (_SIZES.values(), sizes)):
        if strange := [key for key in chosen if key not in names]:
            raise ValueError(f"suite {plan.suite.name}: options has {strange[0]!r}; known are {', '.join(names)}")
    rows, ratios = module.measure(module.Sizes(_statistics(plan)["items"], **sizes), **options)
    copied = suite_spec.published(plan.suite.name, plan.dataset)
    shown = [["", "parameters", "FLOPs a user", "batch", "ms a user"]]
    for row in rows:
        flops, count = (f"{row[name] / 1e6:.2f}M" for name in ("flops_score", "parameters"))
        shown.append([row["model"], count, flops, str(row["batch"]), f"{row['ms_a_user']:.3f}"])
    for name, printed in copied.items():
        figures = f"{printed['parameters'] / 1e6:.2f}M", f"{printed['flops'] / 1e6:.2f}M", "1", f"{printed['ms']:.2f}"
        shown.append([f"*{name} (copied)*", *(f"*{text}*" for text in figures)])
    return {"suite": plan.suite.name, "costs": rows, "ratios": ratios, "copied": copied}, markdown.table(shown)


#: A kind is added here and named in ``spec.KINDS``.
KINDS: Mapping[str, Callable[[RunPlan], Made]] = {
    "quality": quality, "statistics": statistics, "embedding": embedding, "cost": cost,
}  # fmt: skip


def _about(plan: RunPlan) -> dict[str, Any]:
    """Return ``suite.json``: the request, the folders of the trials, and the environment."""
    trials = [
        {"model": trial.spec.name, "seed": trial.seed, "path": str(trial.folder.relative_to(plan.output))}
        for trial in plan.shown
    ]
    return {
        "suite": asdict(plan.suite), "overrides": dict(plan.overrides), "dataset": plan.dataset,
        "data_path": str(plan.data_path), "trials": trials,
        "impossible": dict(plan.impossible), "command": shlex.join(sys.argv), "versions": environment.versions(),
        "revision": environment.revision(), "machine": environment.machine(),
    }  # fmt: skip


def _statistics(plan: RunPlan) -> dict[str, Any]:
    config = experiment.configure(MODEL, plan.dataset, plan.data_path, {**plan.suite.shared, **plan.overrides})
    with experiment.working_directory(plan.folder):
        data = patches.quick_start.create_dataset(config)
    users, items, interactions = data.user_num - 1, data.item_num - 1, data.inter_num  # RecBole counts the padding
    counts = {"users": users, "items": items, "interactions": interactions}
    return counts | {"sparsity": 1 - interactions / users / items, "length": interactions / users}
