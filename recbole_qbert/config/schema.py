"""Settings of the three stages: frozen dataclasses that are built once from property files and command line.

Nothing else in the package reads a configuration mapping. The source of each default is documented beside the key in
``properties/model/QBERT4Rec.yaml``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from recbole_qbert.utils.spelling import did_you_mean

MODEL = "QBERT4Rec"

# Properties that do not change what is computed: output folders, logging, device, processes.
RUNTIME_PROPERTIES = frozenset(
    "checkpoint_dir checkpoint_file show_progress state device gpu_id use_gpu worker verbose semantic_id_dir rebuild "
    "local_rank world_size nproc ip port offset single_spec log_wandb wandb_project data_path".split()
)

#: Properties that had another name before version 0.2: old name, which still works -> new name.
RENAMED_PROPERTIES = {"item_rows": "use_item_embedding"}

Config = TypeVar("Config")


def _choice(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}{did_you_mean(str(value), allowed)}; it must be one of {', '.join(allowed)}")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key} is {value}; it must lie between {low} and {high}")


@dataclass(frozen=True)
class SequenceConfig:
    """Stage 3: the sequence model. Fields are named as the property keys; the property file documents them."""

    hidden_size: int
    n_layers: int
    n_heads: int
    inner_size: int
    hidden_dropout_prob: float
    attn_dropout_prob: float
    initializer_range: float
    max_length: int
    views: tuple[str, ...]
    loss: str
    use_item_embedding: bool
    repeat_penalty: str
    score_views: tuple[str, ...] | None = None  # all views, as before version 0.3; the property file says auto

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not self.views:
            raise ValueError("views is empty; it must name causal, masked or both")
        for view in self.views:
            _choice("views", view, ("causal", "masked"))
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views is {', '.join(self.views)}; name each once")
        if isinstance(self.score_views, (list, str)):
            given = (self.score_views,) if isinstance(self.score_views, str) else tuple(self.score_views)
            object.__setattr__(self, "score_views", given)
        if self.score_views is not None and self.score_views != ("auto",):
            for view in self.score_views:
                _choice("score_views", view, ("auto", *self.views))
            if not self.score_views or len(set(self.score_views)) < len(self.score_views) or "auto" in self.score_views:
                named = ", ".join(self.score_views) or "empty"
                raise ValueError(f"score_views is {named}; it must name trained views once each, or auto")
        _choice("loss", self.loss, ("item", "code"))
        _choice("repeat_penalty", self.repeat_penalty, ("learned", "exclude", "none"))
        _within("hidden_dropout_prob", self.hidden_dropout_prob, 0, 0.95)
        _within("attn_dropout_prob", self.attn_dropout_prob, 0, 0.95)
        if self.hidden_size % self.n_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}")
        if self.loss == "code" and self.repeat_penalty == "learned":
            raise ValueError(
                "repeat_penalty is 'learned' but loss is 'code': a loss over codes cannot learn a penalty on items; "
                "set repeat_penalty to exclude or none, or loss to item"
            )

    @property
    def ranking_views(self) -> tuple[str, ...]:
        """Return the views that rank; ``auto`` is the causal view, or all views where that is not trained."""
        if self.score_views == ("auto",):
            return ("causal",) if "causal" in self.views else self.views
        return self.score_views or self.views


@dataclass(frozen=True)
class InjectionConfig:
    """Stage 1: dynamic cross-modal injection. Property keys carry the prefix ``injection_``."""

    modalities: tuple[str, ...]
    query: str
    dim: int
    layers: int
    heads: int
    dropout: float
    gate: str
    temperature: float
    contrast_temperature: float
    consistency: float
    depth_cost: float
    id_dropout: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int
    holdout: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        _choice("injection_query", self.query, ("random", "structural"))
        _choice("injection_gate", self.gate, ("dynamic", "none"))
        _within("injection_layers", self.layers, 1, 100)
        _within("injection_id_dropout", self.id_dropout, 0, 1)
        _within("injection_holdout", self.holdout, 0, 0.5)
        if self.dim % self.heads:
            raise ValueError(f"injection_dim {self.dim} is not a multiple of injection_heads {self.heads}")
        if self.temperature <= 0 or self.contrast_temperature <= 0:
            raise ValueError("injection_temperature and injection_contrast_temperature must be above 0")


@dataclass(frozen=True)
class QuantizerConfig:
    """Stage 2: residual quantization. Property keys carry the prefix ``rq_``; that of ``method`` is ``quantizer``."""

    method: str
    levels: int
    codes: int
    dim: int
    hidden: tuple[int, ...]
    learning_rate: float
    weight_decay: float
    batch_size: int
    warmup_steps: int
    steps: int
    beta: float
    kmeans_iterations: int
    kmeans_sample: int
    axes: int
    warmup_epochs: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _choice("quantizer", self.method, ("residual_kmeans", "rqvae"))
        _within("rq_levels", self.levels, 1, 26)
        _within("rq_codes", self.codes, 2, 32_000)
        for key in ("dim", "batch_size", "axes", "kmeans_sample"):
            _within(f"rq_{key}", getattr(self, key), 1, 1_000_000)


@dataclass(frozen=True)
class TrainConfig:
    """Stage 3: how the sequence model is trained."""

    train_stage: str
    view_schedule: str
    mask_ratio: float
    span_ratio: float
    multi_region_ratio: float
    tail_ratio: float
    structural_prior: str
    adam_betas: tuple[float, float]
    warmup_steps: int
    matmul_precision: str
    pretrain_masks: tuple[str, ...]
    domain_sampling: str
    freeze: tuple[str, ...]
    teachers: int = 0
    teacher_weight: float = 2.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        for key in ("adam_betas", "pretrain_masks", "freeze"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        object.__setattr__(self, "freeze", tuple("item_embedding" if part == "rows" else part for part in self.freeze))
        for mask in self.pretrain_masks:
            _choice("pretrain_masks", mask, ("random", "span", "multi_region", "tail"))
        for part in self.freeze:
            _choice("freeze", part, ("encoder", "codebook", "item_embedding", "mask_vector", "repeat_penalty"))
        _within("teachers", self.teachers, 0, 64)
        _within("teacher_weight", self.teacher_weight, 0, 1000)
        _choice("domain_sampling", self.domain_sampling, ("proportional", "balanced"))
        _choice("train_stage", self.train_stage, ("pretrain", "finetune"))
        _choice("view_schedule", self.view_schedule, ("alternate", "joint"))
        _choice("matmul_precision", self.matmul_precision, ("highest", "high", "medium"))
        _choice("structural_prior", self.structural_prior, ("none", "cooccurrence"))
        for key in ("mask_ratio", "span_ratio", "multi_region_ratio", "tail_ratio"):
            _within(key, getattr(self, key), 0, 0.99)
        if not self.mask_ratios:
            raise ValueError(f"every mask ratio of train_stage {self.train_stage} is 0; at least one must be above 0")

    @property
    def mask_ratios(self) -> dict[str, float]:
        """Mask strategies and their ratios: ``pretrain_masks``, or ``random`` when fine-tuning; without those of ratio 0."""
        names = self.pretrain_masks if self.train_stage == "pretrain" else ("random",)
        ratios = {name: getattr(self, "mask_ratio" if name == "random" else f"{name}_ratio") for name in names}
        return {name: ratio for name, ratio in ratios.items() if ratio > 0}


@dataclass(frozen=True)
class IdentifierConfig:
    """What is quantized into an item's semantic ID, and from which features (keys as in the property file)."""

    semantic_ids: str
    fusion: str
    missing_features: str
    builtin_width: int
    text_fields: tuple[str, ...] = ("auto",)

    def __post_init__(self) -> None:
        _choice("fusion", self.fusion, ("concatenation", "injection"))
        fields: Any = self.text_fields  # one name alone is a string
        fields = (fields,) if isinstance(fields, str) else fields
        object.__setattr__(self, "text_fields", tuple(map(str, fields)))
        if "auto" in self.text_fields and len(self.text_fields) > 1:
            raise ValueError(f"text_fields is {', '.join(self.text_fields)}; give either auto, or names of columns")
        _choice("semantic_ids", self.semantic_ids, ("fused", "per_modality", "both", "none"))
        _choice("missing_features", self.missing_features, ("error", "mask"))

    def code_sets(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Name the code sets in the order of their levels; without modalities, only ``fused`` remains."""
        if self.semantic_ids == "none":
            return ()
        fused = ("fused",) if self.semantic_ids != "per_modality" or not modalities else ()
        return (*fused, *(modalities if self.semantic_ids != "fused" else ()))


def with_current_names(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the old names of ``RENAMED_PROPERTIES`` by the new ones.

    >>> with_current_names({"item_rows": False, "seed": 1})
    {'use_item_embedding': False, 'seed': 1}
    """
    return {RENAMED_PROPERTIES.get(name, name): value for name, value in properties.items()}


def read(kind: type[Config], values: Mapping[str, Any], prefix: str = "") -> Config:
    """Build a configuration dataclass from a mapping that may hold other keys too.

    Args:
        kind: a frozen dataclass.
        values: property keys and values.
        prefix: prefix of the property keys before the field names.

    Raises:
        ValueError: a key has no value, or the dataclass refuses a value.
    """
    arguments = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = values.get(prefix + field.name)
        if value is not None:
            arguments[field.name] = value
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"property {prefix + field.name!r} has no value; give it one, or leave it out for its default")
    return kind(**arguments)
