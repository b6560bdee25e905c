"""What a model costs (the paper's Table 6): parameters, floating-point operations, latency.

Sizes need no data: networks are built over made-up catalogs (N items, random codes) and read made-up histories of the
full length, which is the most that they cost.

*Operations.* A multiplication and an addition are two. Counted are matrix products, those of attention among them, and the
additions that compose item vectors and scores from codes. Not counted, for any model: look-ups, element-wise work (norms,
activations, softmax, dropout, penalties) and the optimizer's step. torch's own counter counts 0 for the fused attention that
it takes on CPUs, for our compiled one, for products added in place (a third of the item softmax) and for additions. So
attention is counted on torch's plain kernel and the rest by formulas given here, and the result holds for every device. The
paper's own FLOPs are 50 x parameters on all of its three data sets: one operation a parameter and position, rows of items
that are only looked up included; attention is not counted.

*Scoring* is that of the whole catalog for one history. QBERT4Rec's item vectors are composed from codes once for a trained
network, and in training once a batch and view; this is told apart. *Latency* is that of the ten best items, by what the
recommend command uses (``ranker.CatalogRanker``) or RecBole's scores and ``torch.topk``.

*A user in training* has ``max_length + 1`` interactions in the training part. QBERT4Rec reads them as one row; RecBole's
models read ``max_length`` rows, one a prefix, all of them padded to the full length.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recbole_qbert.config.property_files import property_file, read_properties
from recbole_qbert.config.schema import IdentifierConfig, QuantizerConfig, SequenceConfig, TrainConfig, read
from recbole_qbert.recbole_integration import experiment, patches
from recbole_qbert.retrieval.catalog_ranker import CatalogRanker
from recbole_qbert.sequence.kernels.dispatch import without_kernels
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.utils.environment import ratio, take_turns

# Name -> property files and changes of them.
OURS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "QBERT4Rec": ((), {}),
    "QBERT4Rec, no item embedding": ((), {"use_item_embedding": False}),
    "QBERT4Rec (paper), item embedding": (("paper/QBERT4Rec.yaml",), {"use_item_embedding": True}),
    "QBERT4Rec (paper)": (("paper/QBERT4Rec.yaml",), {}),
}
THEIRS = ("SASRec", "BERT4Rec", "GRU4Rec")
MODELS = (*OURS, *THEIRS)
OPTIONS = ("models", "batches", "rounds", "device")  # of ``measure``

# Parameters with an entry a catalog item, ours and RecBole's.
_PER_ITEM = ("item_embedding", "item_embedding.weight", "output_bias")
_TRAINING_BATCH = 256  # QBERT4Rec's train_batch_size; RecBole's models have no cost a batch
_ROWS_COUNTED = 4  # operations are proportional to rows; a few keep the logits over a large catalog small
_WARM_UP = 3
_BEST = 10


@dataclass(frozen=True)
class Sizes:
    """How large a catalog and a network are.

    Attributes:
        items: ``N``.
        width: ``D``.
        layers: blocks of the encoder (of GRUs: GRU4Rec).
        heads: attention heads; must divide ``width``.
        inner: width of the feed-forward layer.
        max_length: ``L``.

    The rows called ``paper`` have the paper's width (256), layers (4), heads (4) and inner width (512).
    """

    items: int
    width: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 256
    max_length: int = 50

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.max_length < 4:
            raise ValueError(f"max_length is {self.max_length}; below 4 RecBole's BERT4Rec hides nothing")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclass(frozen=True)
class Subject:
    """A network whose cost is measured.

    Attributes:
        name: one of ``MODELS``.
        sizes: its own; those of the paper for ``paper``.
        module: the network, untrained.
        score: histories ``[B, L]`` int64 -> scores of all items ``[B, N + 1]``.
        ranker: gives a function from histories ``[B, L]`` to their ten best items ``[B, 10]``, made once for the weights.
        loss: ``[B, L + 1]`` int64 training histories -> ``[]``: one row a user (ours), or the last prefix (RecBole's).
        rows_a_user: training rows that a user of ``L + 1`` training interactions makes.
    """

    name: str
    sizes: Sizes
    module: nn.Module
    score: Callable[[Tensor], Tensor]
    ranker: Callable[[], Callable[[Tensor], Tensor]]
    loss: Callable[[Tensor], Tensor]
    rows_a_user: int


@dataclass(frozen=True)
class Operations:
    """Operations of one call with a batch of ``B`` rows: ``batch + B * row``.

    Attributes:
        batch: what a batch of any size costs, the composition of the item table from codes.
        row: what each row adds.
    """

    batch: int
    row: float

    def a_row(self, rows: int) -> float:
        """Return the operations per row in a batch of ``rows`` rows."""
        return self.row + self.batch / rows


def build(name: str, sizes: Sizes) -> Subject:
    """Build an untrained network over a made-up catalog, on the CPU.

    Args:
        name: one of ``MODELS``.
        sizes: of the catalog and, but for ``paper``, of the network.

    Raises:
        ValueError: unknown name.
    """
    if name in OURS:
        return _ours(name, sizes)
    if name in THEIRS:
        return _theirs(name, sizes)
    raise ValueError(f"{name!r} is none of {', '.join(MODELS)}")


def _ours(name: str, sizes: Sizes) -> Subject:
    files, changes = OURS[name]
    own = {"hidden_size": sizes.width, "n_layers": sizes.layers, "n_heads": sizes.heads, "inner_size": sizes.inner}
    values = read_properties(property_file("model/QBERT4Rec.yaml")) | own
    for file in files:
        values |= read_properties(property_file(file))
    values |= {**changes, "max_length": sizes.max_length}
    config, training = read(SequenceConfig, values), read(TrainConfig, values)
    quantizer = read(QuantizerConfig, values).for_catalog(sizes.items)
    levels = quantizer.levels * len(read(IdentifierConfig, values).code_sets(("text", "image")))
    drawn = torch.randint(quantizer.codes, (sizes.items, levels), generator=torch.Generator().manual_seed(0))
    network = SemanticSequenceModel(config, torch.cat([torch.full((1, levels), -1), drawn]), quantizer.codes)
    # A span hides the same number of positions in every row; the random mask of fine-tuning does so on average.
    ratios = {"span": training.mask_ratio}

    def loss(histories: Tensor) -> Tensor:
        lengths = _full(histories)
        return network.loss(histories, lengths, config.views, ratios)

    def score(histories: Tensor) -> Tensor:
        return network.scores(histories, _full(histories))

    def ranker() -> Callable[[Tensor], Tensor]:
        index = CatalogRanker(network, dense=False)
        k, threads = min(_BEST, sizes.items), torch.get_num_threads()
        return lambda histories: index.top_k(histories, _full(histories), k, normalised=False, threads=threads)[1]

    actual = dataclasses.replace(
        sizes, width=config.hidden_size, layers=config.n_layers, heads=config.n_heads, inner=config.inner_size
    )
    return Subject(name, actual, network, score, ranker, loss, rows_a_user=1)


def _theirs(name: str, sizes: Sizes) -> Subject:
    settings = {
        "hidden_size": sizes.width, "embedding_size": sizes.width, "n_layers": sizes.layers, "num_layers": sizes.layers,
        "n_heads": sizes.heads, "inner_size": sizes.inner, "MAX_ITEM_LIST_LENGTH": sizes.max_length, "state": "ERROR",
    }  # fmt: skip
    files = [str(property_file(f"baseline/{file}.yaml")) for file in ("common", name)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "made_up" / "made_up.inter"  # a configuration wants a data set, but does not read it
        data.parent.mkdir()
        data.write_text("user_id:token\titem_id:token\ttimestamp:float\n")
        config = experiment.configure(name, "made_up", folder, settings, files)
    patches.quick_start.construct_transform(config)  # names the columns of BERT4Rec's batches in the configuration
    network = patches.quick_start.get_model(name)(config, _Catalog(sizes.items))

    def loss(histories: Tensor) -> Tensor:
        past = histories[:, :-1]
        batch = {network.ITEM_SEQ: past, network.ITEM_SEQ_LEN: _full(past), network.POS_ITEM_ID: histories[:, -1]}
        if name == "BERT4Rec":  # as its transform makes them: every row has places for the same number of hidden items
            where = torch.arange(network.mask_item_length, device=past.device).repeat(len(past), 1)
            hidden = past.gather(1, where)
            batch |= {network.MASK_ITEM_SEQ: past, network.MASK_INDEX: where}
            batch |= {network.POS_ITEMS: hidden, network.NEG_ITEMS: hidden}
        result: Tensor = network.calculate_loss(batch)
        return result

    def score(histories: Tensor) -> Tensor:
        batch = {network.ITEM_SEQ: histories, network.ITEM_SEQ_LEN: _full(histories)}
        result: Tensor = network.full_sort_predict(batch)
        return result

    def best(histories: Tensor) -> Tensor:
        return score(histories)[:, 1:].topk(min(_BEST, sizes.items)).indices + 1

    return Subject(name, sizes, network, score, lambda: best, loss, rows_a_user=sizes.max_length)


class _Catalog:
    """The part of a data set that RecBole's sequential models read."""

    def __init__(self, items: int) -> None:
        self.items = items

    def num(self, field: str) -> int:
        """Count the values of a field, with the padding."""
        del field
        return self.items + 1


def parameters(module: nn.Module) -> dict[str, int]:
    """Count parameters.

    Returns:
        ``parameters`` (all), ``parameters_codes`` (tables of codes), ``parameters_items`` (rows of items, the padding's
        among them), ``parameters_encoder`` (the rest), and ``parameters_an_item``, by how many one item more makes it grow.
    """
    counts = {"codes": 0, "items": 0, "encoder": 0}
    an_item = 0
    for name, parameter in module.named_parameters():
        part = "items" if name in _PER_ITEM else "codes" if name == "codebook" else "encoder"
        counts[part] += parameter.numel()
        an_item += parameter.numel() // len(parameter) if part == "items" else 0
    named = {f"parameters_{part}": count for part, count in counts.items()}
    return {"parameters": sum(counts.values()), **named, "parameters_an_item": an_item}


def scoring(subject: Subject) -> Operations:
    """Count the operations of scoring the whole catalog for full histories; the network must be on the CPU."""
    subject.module.eval()
    histories = _histories(subject.sizes, _ROWS_COUNTED, subject.sizes.max_length)
    with torch.no_grad():
        return _count(lambda: subject.score(histories), _ROWS_COUNTED)


def training(subject: Subject) -> Operations:
    """Count the operations of loss and gradients of a batch of training rows; the network must be on the CPU."""
    subject.module.train()
    histories = _histories(subject.sizes, _ROWS_COUNTED, subject.sizes.max_length + 1)
    operations = _count(lambda: subject.loss(histories).backward(), _ROWS_COUNTED)
    subject.module.zero_grad()
    return operations


def _summed_codes(vectors: Sequence[int], indices: Sequence[int], *_: Any, **__: Any) -> int:
    return indices[0] * vectors[1]


def _product(_: Any, left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _looked_up(_: Any, dim: int, *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    return out_shape[0] * out_shape[1] if dim == 1 else 0  # 0: whole rows, of packed tokens


_COMPOSITION = {
    torch.ops.aten._embedding_bag: _summed_codes,
    torch.ops.aten._embedding_bag_forward_only: _summed_codes,
    torch.ops.aten._embedding_bag_backward: _summed_codes,
}
_MISSING = {
    **_COMPOSITION,
    torch.ops.aten.addmm_: _product,
    # ``ranking.code_scores`` adds the columns it looks up; nothing else here selects columns.
    torch.ops.aten.index_select: _looked_up,
}


def _count(run: Callable[[], Any], rows: int) -> Operations:
    with without_kernels(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_MISSING) as counter:
        run()
    counts = counter.get_flop_counts().get("Global", {})
    batch = sum(counts.get(operation, 0) for operation in _COMPOSITION)
    return Operations(batch, (sum(counts.values()) - batch) / rows)


@torch.no_grad()
def latencies(subjects: Sequence[Subject], batch: int, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Measure the seconds of finding the ten best items for ``batch`` histories of the full length, in each round.

    The subjects take turns within a round, so that a busy machine is busy for all of them.

    Args:
        subjects: what ``build`` returned; they are left on the device.
        batch: ``B``.
        rounds: how often, after three calls that do not count.
        device: ``cpu`` or ``cuda``.
    """
    ways = {}
    for subject in subjects:
        subject.module.to(device).eval()
        histories = _histories(subject.sizes, batch, subject.sizes.max_length).to(device)
        ways[subject.name] = _until_done(subject.ranker(), histories, device)
    return take_turns(ways, rounds, _WARM_UP)


def measure(
    sizes: Sizes,
    models: Sequence[str] = MODELS,
    batches: Sequence[int] = (1, 256),
    rounds: int = 20,
    device: str = "cpu",
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measure the cost of models over one catalog.

    Args:
        sizes: of the catalog and the networks.
        models: some of ``MODELS``.
        batches: for which ``B`` latency is measured; training operations are those of batches of 256 rows.
        rounds: of latency.
        device: where latency is measured.

    Returns:
        ``(rows, ratios)``. One row a model and batch: ``model``, ``batch``, ``device``, the sizes, what ``parameters``
        gives, ``flops_score`` (a user), ``flops_composition`` (of item vectors, once for a trained network),
        ``flops_training_row``, ``flops_training_user``, ``flops_as_the_paper`` (``max_length`` x parameters), ``ms_a_user``
        (median of the rounds), ``ms_a_user_best``, ``rounds``. Ratios, RecBole's to ours, of ``ms_a_user`` (median of the
        rounds' own ratios) and ``flops_training_user``.

    Raises:
        ValueError: unknown model, size or batch below 1, no CUDA device.
    """
    if min(*batches, rounds) < 1:
        raise ValueError(f"batches are {list(batches)} and rounds {rounds}; all must be at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no CUDA device; use cpu")
    subjects = [build(name, sizes) for name in models]
    facts: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        count, score = parameters(subject.module), scoring(subject)
        row = training(subject).a_row(_TRAINING_BATCH)
        facts[subject.name] = {
            **dataclasses.asdict(subject.sizes),
            **count,
            "flops_score": score.row,
            "flops_composition": score.batch,
            "flops_training_row": row,
            "flops_training_user": row * subject.rows_a_user,
            "flops_as_the_paper": subject.sizes.max_length * count["parameters"],
        }
    rows, ratios = [], {}
    for batch in batches:
        seconds = latencies(subjects, batch, rounds, device)
        for name, times in seconds.items():
            rows.append(
                {
                    "model": name, "batch": batch, "device": device, **facts[name],
                    "ms_a_user": statistics.median(times) / batch * 1e3, "ms_a_user_best": min(times) / batch * 1e3,
                    "rounds": rounds,
                }
            )  # fmt: skip
        for other, ours in _pairs(models):
            name = f"ms_a_user: {other}/{ours}, items {sizes.items}, batch {batch}"
            ratios[name] = ratio(seconds[other], seconds[ours])
    for other, ours in _pairs(models):
        quotient = facts[other]["flops_training_user"] / facts[ours]["flops_training_user"]
        ratios[f"flops_training_user: {other}/{ours}, items {sizes.items}"] = quotient
    return rows, ratios


def published() -> list[dict[str, Any]]:
    """Return the paper's own figures as rows (``copied`` is true), measured on an RTX 4090."""
    known = read_properties(property_file("benchmark/published.yaml"))
    return [
        {
            "model": f"Q-BERT4Rec as published, {data.removeprefix('Amazon_')}", "copied": True,
            "items": known["table1"][data]["statistics"]["items"], "max_length": 50, "width": 256, "layers": 4, "heads": 4,
            "inner": 512, "device": "RTX 4090", "parameters": row["parameters"], "flops_as_the_paper": row["flops"],
            "ms_a_user": row["ms"],
        }
        for data, rows in known["table6"].items()
        for row in rows.values()
    ]  # fmt: skip


def _pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Pair RecBole's models with ours of the same sizes."""
    same = [name for name in OURS if name in models and not OURS[name][0]]
    return [(other, ours) for other in THEIRS if other in models for ours in same]


def _histories(sizes: Sizes, batch: int, length: int) -> Tensor:
    return torch.randint(1, sizes.items + 1, (batch, length), generator=torch.Generator().manual_seed(1))


def _full(histories: Tensor) -> Tensor:
    return torch.full((len(histories),), histories.shape[1], device=histories.device)


def _until_done(way: Callable[[Tensor], Any], histories: Tensor, device: str) -> Callable[[], None]:
    """Return a function that makes the call and waits for the GPU to finish it."""

    def run() -> None:
        way(histories)
        if device == "cuda":
            torch.cuda.synchronize()

    return run
