"""Runs one trial: ``python -m recbole_qbert.experiments.suites.worker CELLDIR``, a process of its own.

RecBole's global state, the peak of memory and crashes stay in that process. ``config.json`` is the request. ``cell.json`` is
written last, so a trial that was killed is run again; it resumes after its last validation where ``experiment.train`` can.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.config.schema import MODEL, read
from recbole_qbert.config.sentences import CollaborativeConfig
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.multi_domain import write_union
from recbole_qbert.experiments.suites import learning_curve
from recbole_qbert.experiments.suites.suite_spec import EVALUATIONS
from recbole_qbert.experiments.suites.trials import (
    FORMAT,
    LATER_PROPERTIES,
    fingerprint,
    identity,
    interactions_fingerprint,
    is_reusable,
    reads_features,
    resolve_property_file,
    validation_protocol,
)
from recbole_qbert.pipeline.catalog import stage_settings
from recbole_qbert.recbole_integration import experiment, patches
from recbole_qbert.recbole_integration.identifiers import existing_file, with_defaults
from recbole_qbert.recbole_integration.job import Job
from recbole_qbert.recbole_integration.shared_vocabulary import build_vocabulary, union_name
from recbole_qbert.utils import environment
from recbole_qbert.utils.io import atomic_write, digest, file_lock, read_json, write_json
from recbole_qbert.utils.metrics import metrics_from_ranks

LOG_LINES = 40
#: Properties of training on the target, with the values that stages 1 and 2 and pretraining on the sources have in every
#: trial: whatever a trial varies of the target, its pretraining is that of the other trials, and shared with them.
SHARED_PRETRAINING = {name: LATER_PROPERTIES[name] for name in ("annealing", "train_users", "pretrained_parts")}


def main() -> int:
    """Run the trial of the command line.

    Returns:
        The exit code: 0, or 1 with the reason in ``failed.json``.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="CELLDIR")
    parser.add_argument("--with_parent", action="store_true", help="end when standard input does")
    args = parser.parse_args()
    if args.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = args.folder.resolve()
    try:
        run(folder)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        log = folder / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
        write_json(folder / "failed.json", {"reason": f"{type(error).__name__}: {error}", "log": lines})
        return 1
    return 0


def run(folder: Path) -> None:
    """Train and test what ``config.json`` requests; write ``ranks.npz`` and ``cell.json``."""
    request = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with file_lock(folder):
        done = folder / "cell.json"
        if done.exists() and is_reusable(
            json.loads(done.read_text(encoding="utf-8")), request["keep"], request.get("with_ids", False)
        ):
            return  # another process was quicker
        with experiment.working_directory(folder / "work"):
            result, ranks = _run(request)
        done.unlink(missing_ok=True)  # a result without what is needed: its metrics are not those of the new ranks
        with atomic_write(folder / "ranks.npz") as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **ranks)
        checkpoint = Path(result["checkpoint"]) if request["keep"] else None
        write_json(done, result | {"checkpoint": checkpoint and str(checkpoint.relative_to(folder))})
        for path in (folder / "work").rglob("*"):  # only now: a trial that is killed before resumes from them
            if path.suffix in (".pth", ".progress") and path != checkpoint:
                path.unlink()


@dataclass
class Stage:
    """One training of a trial: pretraining, fine-tuning, or the only one."""

    name: str
    dataset: str
    data_path: str
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoint_as: str | None = None


def _run(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of ``cell.json``, and the ranks."""
    work = Path.cwd()
    revision = _revision(work / "revisions.txt")
    files = [str(resolve_property_file(file)) for file in request["files"]]
    base = {
        **request["settings"],
        "seed": request["seed"],
        "checkpoint_dir": str(work),
        "show_progress": False,
        "state": "INFO",
    }
    config = experiment.configure(request["model"], request["dataset"], request["data_path"], base, files)
    base |= _identifiers(request, config)
    seconds = {"data": 0.0, "model": 0.0}
    epochs: list[dict[str, Any]] = []
    carried: dict[str, Any] = {}
    identifiers, peak = None, 0
    for stage in _stages(request, config, base):
        config = experiment.configure(
            request["model"], stage.dataset, stage.data_path, base | stage.settings | carried, files
        )
        # QBERT4Rec's pretraining on the data set itself is short; its trainer finds what it has done in the trial's folder.
        if stage.checkpoint_as and (request["model"] != MODEL or request["sources"]):
            summary = _shared(request, stage, config)
            revision = _then(summary["revision"], revision)
        else:
            trained, summary = _train(work, stage, config)
        epochs += summary["epochs"]
        peak = max(peak, summary["peak_memory_mb"])
        for name in seconds:
            seconds[name] += summary["seconds"][name]
        if identifiers is None or request["sources"]:  # later stages load what the first one has built
            identifiers = summary["identifiers"]
        carried = {stage.checkpoint_as: summary["checkpoint"]} if stage.checkpoint_as else {}
    experiment.exclude_history(trained.model, False)  # target_ranks excludes by itself
    started = time.perf_counter()
    ranks, test = tested(trained)
    seconds |= {"training": sum(epoch.get("seconds", 0.0) for epoch in epochs), "test": time.perf_counter() - started}
    prior = None
    if request["model"] == MODEL and trained.model.prior is None:
        prior = experiment.add_prior(trained) | {
            "rule": validation_protocol(config)
        }  # as in validation: the model still knows
        with_prior, metrics = tested(trained)
        ranks |= {f"prior_{name}": values for name, values in with_prior.items()}
        test |= {f"prior_{name}": values for name, values in metrics.items()}
    rows = trained.test_data._dataset
    # Users by RecBole's ids, in whose order the ranks are: a model that knows other test users cannot be paired.
    ranks["users"] = np.sort(rows.inter_feat[config["USER_ID_FIELD"]].numpy()).astype(np.int32)
    result = {
        "format": FORMAT,
        **{key: request[key] for key in ("key", "dataset", "sources", "model", "seed", "settings", "tuned")},
        **{key: request.get(key) for key in ("settings_key", "interactions", "features")},
        "valid": trained.valid,
        "test": test,
        "curve": epochs,
        "epochs": len(trained.trainer.train_loss_dict),
        "seconds": seconds,
        "peak_memory_mb": max(peak, environment.peak_memory_mb()),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "items": rows.item_num - 1,
        "users": len(ranks["users"]),
        "identifiers": identifiers,
        "sid": os.path.relpath(path, work.parent) if request["model"] == MODEL and (path := existing_file(config)) else None,
        "prior": prior,
        "checkpoint": trained.trainer.saved_model_file,
        "versions": environment.versions(),
        "revision": revision,
        "machine": environment.machine(),
    }
    return result, ranks


def _shared(request: Mapping[str, Any], stage: Stage, config: Any) -> dict[str, Any]:
    """Return what ``_train`` returns of a stage that another one starts from.

    Trials of the same data, seed and settings in this stage share it. The first one trains it and has its log.
    """
    key = digest([fingerprint(Path(stage.data_path), stage.dataset), identity(config)])
    folder = Path(request["pretrained"]) / f"{request['model']}-{key[:12]}" / f"seed-{request['seed']}"
    done = folder / "stage.json"
    with file_lock(folder):
        if done.exists():
            finished = read_json(done, "delete it, and the stage is trained anew")
            finished["checkpoint"] = str(folder / finished["checkpoint"])
            if Path(finished["checkpoint"]).exists():
                return finished
            done.unlink()
        config["checkpoint_dir"] = str(folder)
        revision = _revision(folder / "revisions.txt")
        summary = _train(folder, stage, config)[1] | {"revision": revision}
        write_json(done, summary | {"checkpoint": os.path.relpath(summary["checkpoint"], folder)})
    return summary


def _train(folder: Path, stage: Stage, config: Any) -> tuple[experiment.Run, dict[str, Any]]:
    """Run a stage; return it and what the trial records of it."""
    with learning_curve.watched(stage.name) as curve:
        prepare = experiment.exclude_history if validation_protocol(config) == "history_excluded" else None
        trained = experiment.train(config, prepare=prepare, checkpoint_file=folder / f"{stage.name}.pth")
    losses = trained.trainer.train_loss_dict
    return trained, {
        "epochs": [{"stage": stage.name, **curve.get(n, {"epoch": n}), "train_loss": float(x)} for n, x in losses.items()],
        "seconds": trained.seconds,
        "identifiers": getattr(trained.model, "identifier_figures", None),
        "checkpoint": os.path.abspath(trained.trainer.saved_model_file),
        "peak_memory_mb": environment.peak_memory_mb(),
    }


def _revision(file: Path) -> str | None:
    """Return the revisions of the code: those that a killed training began with, then today's."""
    chain = file.read_text().splitlines() if file.exists() else []
    now = environment.revision()
    if now is not None and chain[-1:] != [now]:
        chain.append(now)
        with atomic_write(file) as temporary:
            temporary.write_text("".join(f"{revision}\n" for revision in chain))
    return _then(*chain)


def _then(*revisions: str | None) -> str | None:
    """Join revisions, or chains of them, in the order in which they ran."""
    return " then ".join(dict.fromkeys(part for chain in revisions if chain for part in chain.split(" then "))) or None


def _stages(request: Mapping[str, Any], config: Any, base: Mapping[str, Any]) -> list[Stage]:
    """List the trainings of a trial in order."""
    data: tuple[str, str] = (request["dataset"], request["data_path"])
    if request["stages"]:
        stages = []
        for number, given in enumerate(map(dict, request["stages"]), 1):
            place = _union(request) if given.pop("on_sources", False) else data
            stages.append(Stage(f"stage-{number}", *place, given, given.pop("checkpoint_as", None)))
        return stages
    if request["model"] != MODEL:
        return [Stage("train", *data)]
    last = Stage("finetune", *data)
    before = Stage("pretrain", *data, experiment.pretraining_settings(config), "pretrained")
    if request["sources"]:
        union, ids = _vocabulary(request, config, base)
        before.dataset, before.data_path = union.dataset, str(union.data_path)
        before.settings |= SHARED_PRETRAINING | {key: union.properties[key] for key in ("semantic_id_file", "domains")}
        last.settings["semantic_id_file"] = str(ids)
    pretrained = config["pretrain_epochs"] > 0 and not config["pretrained"]
    return [before, last] if pretrained else [last]


def _union(request: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and ``data_path`` of the union of the sources; trials of the same sources share it."""
    sources, data_path = request["sources"], Path(request["data_path"])
    data = [fingerprint(data_path, name) for name in sources]
    folder = Path(request["vocabularies"]) / digest([sources, data])[:12]
    with file_lock(folder):
        write_union(sources, data_path, folder, union_name(sources), AtomicFormat.from_config(request["settings"]))
    return union_name(sources), str(folder)


def _identifiers(request: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the folder of a trial's item IDs; trials of the same data and settings of what makes the IDs share it.

    The settings of stages 1 and 2 hold the seed. P5CID's IDs depend on training histories only.
    """
    if request["sources"]:
        return {}
    if config["cid_clusters"] is not None:
        tree = asdict(read(CollaborativeConfig, patches.ConfigValues(config)))
        data = interactions_fingerprint(Path(request["data_path"]), request["dataset"])
        return {"semantic_id_dir": str(Path(request["vocabularies"]) / digest([data, tree])[:12])}
    if not reads_features(config):
        return {}
    settings = asdict(stage_settings(with_defaults(config)))
    if config["collisions"]:
        settings["collisions"] = config["collisions"]
    data = fingerprint(Path(request["data_path"]), request["dataset"])
    return {"semantic_id_dir": str(Path(request["vocabularies"]) / digest([data, settings])[:12])}


def _vocabulary(request: Mapping[str, Any], config: Any, base: Mapping[str, Any]) -> tuple[Job, Path]:
    """Return the pretraining on the sources, and the target's semantic IDs, from one quantizer over sources and target.

    Trials of the same data, seed and settings of stages 1 and 2 share the vocabulary; the first one builds it.
    """
    sources, target = request["sources"], request["dataset"]
    data = [fingerprint(Path(request["data_path"]), name) for name in (*sources, target)]
    settings = asdict(stage_settings(patches.ConfigValues(config)))
    folder = Path(request["vocabularies"]) / digest([sources, data, settings])[:12]
    files = [resolve_property_file(file) for file in request["files"]]
    job = Job.of("", request["data_path"], folder, {**base, **SHARED_PRETRAINING}, files)
    with file_lock(folder):
        vocabulary = build_vocabulary(job, sources, [target])
    return vocabulary.pretraining, vocabulary.folder / f"{target}.sid"


def tested(trained: experiment.Run) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Return ranks, ``[U]`` int32, and metrics of both evaluations."""
    ranks = {
        name: experiment.target_ranks(trained, trained.test_data, exclude_history=out) for name, out in EVALUATIONS.items()
    }
    metrics = {name: metrics_from_ranks(values) for name, values in ranks.items()}
    return {name: values.astype(np.int32) for name, values in ranks.items()}, metrics


def _end_with_parent() -> None:
    """End when the runner does: its end of the pipe closes, whatever it died of."""
    while os.read(0, 1):  # not sys.stdin: its lock, held here, aborts an interpreter that ends
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
