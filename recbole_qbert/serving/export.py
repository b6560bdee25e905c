"""Export of a trained model to a folder of tensors and text that is read without pickle and without RecBole.

The folder holds ``config.json`` (format, data set, settings of the network, structural prior, hashes of all files),
``model.safetensors`` (weights, and the pairs of the prior), ``items.sid`` (items in the order of their rows, with their
semantic IDs) beside ``items.sid.json`` (names and size of the levels, vocabulary), and ``titles.tsv``; on demand
``model.onnx``, the same model as one ONNX graph.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.config.property_files import read_properties
from recbole_qbert.config.schema import MODEL, IdentifierConfig, SequenceConfig, read, with_current_names
from recbole_qbert.data.atomic_files import FORMAT_PROPERTIES, RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.data.text_columns import read_titles
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.quantization.tokenizer import save_weights
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.serving.cold_start import Neighbors
from recbole_qbert.utils.atomic import run_lock
from recbole_qbert.utils.io import atomic_write, digest, read_json, sha256, write_json
from recbole_qbert.utils.tensor_file import load_weights

log = logging.getLogger(__name__)

FORMAT = 2
CONFIG_DIGEST = "config_sha256"  # of the rest of config.json
CONFIG, WEIGHTS, IDS, TITLES = "config.json", "model.safetensors", "items.sid", "titles.tsv"
ONNX = "model.onnx"
FORMATS = ("folder", "onnx")
_HASHED = (WEIGHTS, IDS, f"{IDS}.json", TITLES)
_PAIR_BUFFERS = ("pair", "value", "size", "likeness")  # buffers of the prior that are not in its state_dict
_WAY_OUT = "export the model again with 'run_recbole_qbert.py export'"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its catalog.

    Attributes:
        dataset: name of the data set that it was trained on.
        ids: semantic IDs of its ``N`` items, in the order of their rows.
        network: over ``N + 1`` rows, the first of them padding.
        prior: over the same rows; ``None`` without one, or where its weight is 0.
        titles: item token -> title, for the items that have one.
        form: how the atomic files of the data set are written; files of histories may be written so.
    """

    dataset: str
    ids: SemanticIDs
    network: SemanticSequenceModel
    prior: CooccurrencePrior | None
    titles: dict[str, str]
    form: AtomicFormat = RECBOLE_FORMAT

    def with_items(self, ids: SemanticIDs, near: Neighbors | None = None) -> TrainedModel:
        """Copy the model onto a larger catalog; new items follow the old ones, in the order of ``ids``.

        The vectors of new items come from ``SemanticSequenceModel.with_items``. The structural prior has no pairs of them:
        it scores them like old items that never occurred with the history.

        Args:
            ids: the model's own IDs and those of new items, as ``Tokenizer.add`` returns them.
            near: nearest old items of the new ones; when None, new items are scored by their codes alone.

        Raises:
            ValueError: an item of the model is missing or has another ID, the IDs are of another vocabulary, or ``near``
                has no item of the model for a new one.
        """
        own, codes = self.ids, ids.aligned(self.ids.items, "the .sid file")
        differ = (codes != own.codes).any(1) if ids.prefixes == own.prefixes else None
        if differ is None or (ids.vocabulary and own.vocabulary and ids.vocabulary != own.vocabulary):
            raise ValueError(
                f"the semantic IDs are of another vocabulary than the model's (levels {' '.join(ids.prefixes)} and "
                f"{' '.join(own.prefixes)}); extend the model's own with 'run_recbole_qbert.py add'"
            )
        if differ.any():
            row = int(differ.argmax())
            raise ValueError(
                f"item {own.items[row]} has the ID {own.text(row)} in the model and another in the .sid file "
                f"({int(differ.sum())} items differ): extend the model's own IDs with 'run_recbole_qbert.py add'"
            )
        largest = int(ids.codes.max())
        if largest >= own.size:
            raise ValueError(f"the .sid file has code {largest}; codes of the model end at {own.size - 1}")
        own_items = set(own.items)
        items = (*own.items, *(item for item in ids.items if item not in own_items))
        larger = replace(own, items=items, codes=ids.aligned(items, "the .sid file"))
        prior = copy(self.prior)
        if prior is not None:
            prior.items = len(items) + 1
        neighbors = () if near is None else _neighbor_rows(near, own.items, items[len(own.items) :])
        return replace(self, ids=larger, network=self.network.with_items(_codes(larger), *neighbors), prior=prior)


def from_checkpoint(
    path: Path,
    data_path: Path | None = None,
    sid: Path | None = None,
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[str | os.PathLike[str]] = (),
) -> TrainedModel:
    """Read a checkpoint of QBERT4Rec and its data set; only this function needs RecBole.

    Args:
        path: checkpoint written by ``finetune`` or ``train``, or by RecBole.
        data_path: folder that holds the data set's folder; by default the one used at training.
        sid: semantic IDs that the model was trained with; by default the file used at training.
        properties: properties that override those of the training, such as ``ITEM_ID_FIELD`` or ``encoding``.
        config_files: property files, which override those of the training, too.

    Raises:
        ImportError: RecBole is not installed.
        FileNotFoundError: a file is missing.
        ValueError: not a checkpoint of one data set, other items than at training, or other semantic IDs.
    """
    if find_spec("recbole") is None:
        raise ImportError(
            f"{path} is a checkpoint, and reading it requires RecBole, which is not installed here (pip install "
            "recbole==1.2.1); or export it where RecBole is, and load the folder"
        )
    from recbole_qbert.recbole_integration import checkpoint_io, experiment, file_settings, identifiers, patches

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; finetune and train write a checkpoint, <output>/<dataset>/finetune.pth")
    contents = checkpoint_io.Contents.of(checkpoint_io.load_checkpoint(path), path)
    _require_one_data_set(contents.model, contents.settings, path)
    settings = file_settings.settings_from_file(MODEL, contents.settings, str(path))
    settings |= _user_settings(properties, config_files)
    dataset = contents.dataset
    try:
        config = experiment.configure(MODEL, dataset, data_path or settings.get("data_path") or "dataset", settings)
        catalog = experiment.load_catalog(config)
        sequence = read(SequenceConfig, patches.ConfigValues(config) | {"max_length": config["MAX_ITEM_LIST_LENGTH"]})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its config['external'] holds settings of another form: {error!r}") from error
    state = {name: value for name, value in contents.weights.items() if name.startswith("network.")}
    state = {name.removeprefix("network."): value for name, value in state.items()}
    for name in ("codes", "codebook"):
        if name not in state or state[name].dim() < 2:
            raise ValueError(
                f"{path} holds no weights of {MODEL}: its state_dict has no network.{name}, or of another shape"
            )
    codes = state["codes"][1:].numpy()
    if ItemVocabulary(catalog.items).digest != contents.other.get("catalog"):
        raise ValueError(
            f"{path} was trained on other items than those of {catalog.folder}: {len(codes)} there, "
            f"{len(catalog.items)} here; pass the data_path it was trained with"
        )
    if config["semantic_ids"] == "none":
        raise ValueError(
            f"{path} was trained without semantic IDs (semantic_ids: none), to compare with; it is not exported"
        )
    sid = sid or identifiers.existing_file(config)
    if sid is None:
        raise FileNotFoundError(
            f"{identifiers.candidate_files(config)[-1]} is missing: the semantic IDs that the model was trained with are "
            "neither there nor beside the data; pass the file (--sid FILE)"
        )
    ids = semantic_ids.load(sid)
    if ids.codes.shape[1] != codes.shape[1] or (ids.aligned(catalog.items, str(sid)) != codes).any():
        raise ValueError(f"{sid} holds other semantic IDs than {path} was trained with; pass the right file (--sid FILE)")
    ids = replace(ids, items=catalog.items, codes=codes, size=state["codebook"].shape[1])
    prior = None
    fitted = {name: value for name, value in contents.weights.items() if name.startswith("prior.")}
    if "prior.weight" in fitted and bool((fitted["prior.weight"] > 0).any()):
        has_content = "prior.content_weight" in fitted and bool((fitted["prior.content_weight"] > 0).any())
        content = identifiers.content_likeness(config, catalog) if has_content else None
        histories = [ItemVocabulary.to_recbole(history) for history in catalog.histories]
        prior = CooccurrencePrior(histories, len(ids.items) + 1, content=content)
        load_weights(prior, {name.removeprefix("prior."): value for name, value in fitted.items()}, str(path))
    fields = read(IdentifierConfig, patches.ConfigValues(config)).text_fields
    titles = _titles_of(catalog.folder / f"{dataset}.item", catalog.items, fields, catalog.form)
    return TrainedModel(dataset, ids, _network(sequence, ids, state, str(path)), prior, titles, catalog.form)


def _user_settings(properties: Mapping[str, Any] | None, config_files: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Read the property files and properties that a user names; properties override files."""
    settings: dict[str, Any] = {}
    for file in config_files:
        settings |= with_current_names(read_properties(Path(file)))
    return settings | with_current_names(properties or {})


def _require_one_data_set(model: str, settings: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another model, or of a pretraining on several data sets."""
    if model != MODEL:
        raise ValueError(f"{path} is not a checkpoint of {MODEL} but of {model}")
    if settings.get("domains"):
        raise ValueError(
            f"{path} is pretrained on several data sets ({', '.join(map(str, settings['domains']))}); fine-tune it on one "
            "('run_recbole_qbert.py finetune --vocabulary DIR'), and export that"
        )


def _titles_of(path: Path, items: Sequence[str], fields: Sequence[str], form: AtomicFormat) -> dict[str, str]:
    """Read titles from a RecBole ``.item`` file; empty, with a word in the log, if there are none to be read."""
    if not path.exists():
        return {}
    try:
        return read_titles(path, items, fields, form)
    except ValueError as error:
        log.warning("no titles: %s", error)
        return {}


def export_model(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data_path: str | os.PathLike[str] | None = None,
    semantic_ids: str | os.PathLike[str] | None = None,
    properties: Mapping[str, Any] | None = None,
    config_files: Sequence[str | os.PathLike[str]] = (),
    format: str = "folder",
) -> dict[str, Any]:
    """Write the model of a checkpoint as a folder that needs neither RecBole nor the data.

    Args:
        checkpoint: checkpoint written by ``finetune`` or ``train``, or by RecBole.
        output: folder to write; an earlier export is replaced.
        data_path: folder that holds the data set's folder; by default the one used at training.
        semantic_ids: ``.sid`` file of the training; by default the one used at training.
        properties: properties that override those of the training.
        config_files: property files, likewise.
        format: ``folder``, or ``onnx`` for a folder that also holds ``model.onnx`` (``serving.onnx_model``).

    Raises:
        ImportError: RecBole, or for ``onnx`` the package onnx, is not installed.
        FileNotFoundError: a file is missing.
        ValueError: another ``format``, or a checkpoint that cannot be exported (``from_checkpoint``).

    Returns:
        ``folder``, ``dataset``, ``items``, ``titles`` (numbers of them), ``levels``, ``cooccurrence_prior`` and ``bytes``.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    if format == "onnx":
        from recbole_qbert.serving.onnx_model import require_onnx, write_onnx  # imported late: only this format needs it

        require_onnx()  # before anything is written
    data, sid = (None if path is None else Path(path) for path in (data_path, semantic_ids))
    model = from_checkpoint(Path(checkpoint), data, sid, properties, config_files)
    folder = Path(output)
    config = write(model, folder)
    if format == "onnx":
        write_onnx(model.network, model.prior, folder / ONNX)
    return {
        "folder": str(folder),
        "dataset": model.dataset,
        "items": config["items"],
        "titles": len(model.titles),
        "levels": list(model.ids.prefixes),
        "cooccurrence_prior": config["cooccurrence_prior"],
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    }


def write(model: TrainedModel, folder: Path) -> dict[str, Any]:
    """Write a model to a folder, replacing an earlier export, and return its ``config.json``.

    Raises:
        ValueError: ``folder`` is a file, or holds a ``config.json`` of other software, or another export writes to it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; an export is a folder")
    if (folder / CONFIG).exists():
        try:
            _read_config(folder, any_format=True)
        except ValueError:
            if not (folder / IDS).exists():  # a damaged file of an export is replaced, as its error says
                raise
    with run_lock(folder, "export"):
        return _write(model, folder)


def _write(model: TrainedModel, folder: Path) -> dict[str, Any]:
    from recbole_qbert.version import __version__

    # Removed first and written last, so that an interruption leaves a folder that is visibly incomplete.
    (folder / CONFIG).unlink(missing_ok=True)
    (folder / ONNX).unlink(missing_ok=True)  # of an earlier export
    tensors: dict[str, Tensor] = {name: value for name, value in model.network.state_dict().items() if name != "codes"}
    prior_values = None
    if model.prior is not None:
        tensors |= {f"prior.{name}": getattr(model.prior, name) for name in _PAIR_BUFFERS}
        tensors["prior.pair"] = model.prior.pair.int()
        prior_values = {name: float(value) for name, value in model.prior.state_dict().items()}
    save_weights(folder / WEIGHTS, tensors)
    model.ids.save(folder / IDS)
    with atomic_write(folder / TITLES) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        handle.write("item_id\ttitle\n")
        handle.writelines(f"{item}\t{title}\n" for item, title in model.titles.items())
    config = {
        "recbole_qbert": __version__,
        "format": FORMAT,
        "model": MODEL,
        "dataset": model.dataset,
        "items": len(model.ids.items),
        "sequence": asdict(model.network.config),
        "cooccurrence_prior": prior_values,
        "atomic_files": model.form.properties,
        "sha256": {name: sha256(folder / name) for name in _HASHED},
    }
    write_json(folder / CONFIG, config | {CONFIG_DIGEST: digest(config)})
    return config


def load(
    folder: Path, properties: Mapping[str, Any] | None = None, config_files: Sequence[str | os.PathLike[str]] = ()
) -> TrainedModel:
    """Read a folder that ``write`` wrote.

    Args:
        folder: the folder.
        properties: properties on how atomic files are written (``FORMAT_PROPERTIES``), in place of those of the training.
        config_files: property files, of which these properties are read.

    Raises:
        FileNotFoundError: the folder, or a file in it, is missing.
        ValueError: another format, a file that was changed or damaged, or another property.
    """
    if other := [name for name in properties or () if name not in FORMAT_PROPERTIES]:
        raise ValueError(
            f"{folder} is an exported model, which reads of all properties only {', '.join(FORMAT_PROPERTIES)}; found "
            f"{', '.join(other)}"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; make it with 'run_recbole_qbert.py export'")
    config = _read_config(folder)
    for name in _HASHED:
        if name == TITLES and name not in config["sha256"]:  # before version 0.2
            continue
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; {_WAY_OUT}")
        if sha256(path) != config["sha256"].get(name):
            raise ValueError(f"{path} is damaged, or of another export; {_WAY_OUT}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}; {_WAY_OUT}") from error
    pairs = {name: tensors.pop(f"prior.{name}") for name in _PAIR_BUFFERS if f"prior.{name}" in tensors}
    ids = semantic_ids.load(folder / IDS)
    try:
        settings = read(SequenceConfig, with_current_names(config["sequence"]))
        network = _network(settings, ids, tensors, str(folder / WEIGHTS))
        prior = _read_prior(config["cooccurrence_prior"], pairs, len(ids.items), folder)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG} does not describe the network of {WEIGHTS} beside it; {_WAY_OUT} ({error})"
        ) from error
    # The format of the data set is absent in exports of earlier versions.
    form = AtomicFormat.from_config(dict(config.get("atomic_files") or {}) | _user_settings(properties, config_files))
    return TrainedModel(config["dataset"], ids, network, prior, _read_titles(folder / TITLES), form)


def _read_prior(
    values: Mapping[str, float] | None, pairs: Mapping[str, Tensor], items: int, folder: Path
) -> CooccurrencePrior | None:
    """Build the structural prior from its values in ``config.json`` and its pairs among the weights."""
    if not values:
        return None
    if not {"pair", "value", "size"} <= pairs.keys():
        raise ValueError(f"{folder / WEIGHTS} lacks parts of the structural prior; {_WAY_OUT}")
    prior = CooccurrencePrior([], items + 1)
    prior.pair, prior.value, prior.size = pairs["pair"].long(), pairs["value"], pairs["size"]
    prior.likeness = pairs.get("likeness", torch.zeros_like(prior.value))  # absent before version 0.3
    load_weights(prior, {name: torch.tensor(float(value)) for name, value in values.items()}, str(folder / CONFIG))
    return prior


def _read_config(folder: Path, any_format: bool = False) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: {folder} is no exported model, or its export was interrupted; {_WAY_OUT}"
        )
    config = read_json(path, _WAY_OUT)
    if "recbole_qbert" not in config:
        raise ValueError(f"{path} is not a file of an exported model of recbole_qbert; choose another folder")
    if not any_format and config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {config.get('format')!r}, made by recbole_qbert {config['recbole_qbert']}; this version "
            f"reads format {FORMAT}: export the model again, or use that version"
        )
    if any_format:
        return config
    kinds = {"dataset": (str,), "sequence": (dict,), "cooccurrence_prior": (dict, type(None)), "sha256": (dict,)}
    wrong = [key for key, kind in kinds.items() if not isinstance(config.get(key, ...), kind)]
    if wrong:
        raise ValueError(f"{path} has no {', '.join(wrong)}, or of another type; {_WAY_OUT}")
    expected = config.pop(CONFIG_DIGEST, None)
    if expected is None:
        log.info("%s holds no digest of itself; it was written by an earlier version", path)
    elif expected != digest(config):
        raise ValueError(f"{path} is not what was written: it was changed, or is damaged; {_WAY_OUT}")
    return config


def _read_titles(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    return {item: title for item, tab, title in (line.partition("\t") for line in lines) if tab}


def _neighbor_rows(near: Neighbors, old: Sequence[str], new: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Network rows and weights, ``[N_new, k]`` each, of the neighbors of new items; 0 for neighbors that the model does not
    have, and for items that are not in the file (``add`` leaves out items that share no modality with old ones).
    """
    vocabulary = ItemVocabulary(tuple(old))
    row_of = ItemVocabulary(near.items).row_of
    rows = np.zeros((len(new), near.weights.shape[1]), dtype=np.int64)
    weights = np.zeros(rows.shape, dtype=np.float32)
    for number, item in enumerate(new):
        if item not in row_of:
            continue
        rows[number] = vocabulary.to_recbole(vocabulary.rows(near.nearest[row_of[item]].tolist()))
        weights[number] = near.weights[row_of[item]] * (rows[number] > 0)
        if not weights[number].any():
            raise ValueError(
                f"the .neighbours file has no item of the model for the new item {item}; write it again with "
                "'run_recbole_qbert.py add' and features of the model's items"
            )
    return torch.from_numpy(rows), torch.from_numpy(weights / np.maximum(weights.sum(1, keepdims=True), 1e-9))


def _codes(ids: SemanticIDs) -> Tensor:
    """Codes of the network's rows, padding first: ``[N + 1, K]``."""
    return torch.cat([torch.full((1, ids.codes.shape[1]), -1), torch.from_numpy(ids.codes.astype("int64"))])


def _network(
    settings: SequenceConfig, ids: SemanticIDs, weights: Mapping[str, Tensor], source: str
) -> SemanticSequenceModel:
    network = SemanticSequenceModel(settings, _codes(ids), ids.size)
    load_weights(network, {**weights, "codes": network.codes}, source)
    return network.eval()
