"""Settings of the three stages: frozen dataclasses that are built once from property files and command line.

Nothing else in the package reads a configuration mapping. The source of each default is documented beside the key in
``properties/model/QBERT4Rec.yaml``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from recbole_qbert.config.property_values import OF_OUR_MODELS, check_value

MODEL = "QBERT4Rec"

# Properties that do not change what is computed: output folders, logging, device, processes.
RUNTIME_PROPERTIES = frozenset(
    "checkpoint_dir checkpoint_file show_progress state device gpu_id use_gpu worker verbose semantic_id_dir rebuild "
    "local_rank world_size nproc ip port offset single_spec log_wandb wandb_project data_path".split()
)

CODES_OF_AUTO = 16, 256  # the fewest and the most codes of a level that ``rq_codes: auto`` means

#: Properties that had another name before version 0.2: old name, which still works -> new name.
RENAMED_PROPERTIES = {"item_rows": "use_item_embedding"}


@dataclass(frozen=True)
class Settings:
    """Settings whose values are checked one by one; lists become tuples, numbers of numpy become Python's.

    Attributes:
        prefix: prefix of the property keys before the field names.
        keys: field names whose property key is another one, for errors.
    """

    prefix: ClassVar[str] = ""
    keys: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            value = value.item() if isinstance(value, np.generic) else value
            check_value(self.keys.get(field.name, self.prefix + field.name), value)
            object.__setattr__(self, field.name, tuple(value) if isinstance(value, list) else value)


def _one_name_as_tuple(settings: Settings, name: str) -> None:
    """Put a field's one name, which a property file may give without brackets, into a tuple."""
    value: Any = getattr(settings, name)
    if isinstance(value, str):
        object.__setattr__(settings, name, (value,))


@dataclass(frozen=True)
class SequenceConfig(Settings):
    """Stage 3: the sequence model. Fields are named as the property keys; the property file documents them."""

    keys: ClassVar[Mapping[str, str]] = {"max_length": "MAX_ITEM_LIST_LENGTH"}

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
        _one_name_as_tuple(self, "score_views")
        super().__post_init__()
        if self.score_views is not None and self.score_views != ("auto",) and not set(self.score_views) <= set(self.views):
            raise ValueError(
                f"score_views is {', '.join(self.score_views)}; it must be auto, or name views that are trained "
                f"({', '.join(self.views)})"
            )
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
class InjectionConfig(Settings):
    """Stage 1: dynamic cross-modal injection. Property keys carry the prefix ``injection_``."""

    prefix: ClassVar[str] = "injection_"

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
    attention: str = "aligned"  # as before version 0.3, whose settings do not say; so was there no reconstruction
    reconstruction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"injection_dim {self.dim} is not a multiple of injection_heads {self.heads}")


@dataclass(frozen=True)
class QuantizerConfig(Settings):
    """Stage 2: residual quantization. Property keys carry the prefix ``rq_``; that of ``method`` is ``quantizer``."""

    prefix: ClassVar[str] = "rq_"
    keys: ClassVar[Mapping[str, str]] = {"method": "quantizer"}

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
        super().__post_init__()
        if str(self.codes) == "auto":  # what a property file may say
            object.__setattr__(self, "codes", 0)

    def for_catalog(self, items: int) -> QuantizerConfig:
        """Return the settings of a catalog of ``items``: ``codes`` 0, which is ``auto``, becomes a number of codes."""
        return self if self.codes else dataclasses.replace(self, codes=codes_for(items, self.levels))


def codes_for(items: int, levels: int) -> int:
    """Return the codes of a level that ``rq_codes: auto`` means: a power of 2.

    A code of the first level is for 24 items at least, up to 64 codes; from there on the codes grow with the root of the
    catalog. Of few levels there are more, so that all IDs are at least four times the items. Paper silent on small catalogs;
    chosen on validation because with its 256 codes two items of 500 share a code of the first level, and hardly any share
    two (docs/findings.md).

    >>> [codes_for(items, 8) for items in (0, 500, 1_600, 10_000, 30_000, 1_000_000)]
    [16, 16, 64, 64, 128, 256]
    >>> codes_for(500, 2)
    64
    """
    least, most = CODES_OF_AUTO
    wanted = min(items // 24, max(64, math.isqrt(items)))
    codes = max(1 << wanted.bit_length() >> 1, least)
    while codes < most and codes**levels < 4 * items:
        codes *= 2
    return min(codes, most)


@dataclass(frozen=True)
class TrainConfig(Settings):
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
    annealing: float = 0.0
    sampled_items: int = 4096
    teachers: int = 0
    teacher_weight: float = 2.0
    code_init: str = "random"
    pretrained: str | None = None
    pretrained_parts: tuple[str, ...] = ("encoder", "codebook", "item_embedding", "mask_vector", "repeat_penalty")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "freeze", tuple("item_embedding" if part == "rows" else part for part in self.freeze))
        if not self.mask_ratios:
            raise ValueError(f"every mask ratio of train_stage {self.train_stage} is 0; at least one must be above 0")

    @property
    def mask_ratios(self) -> dict[str, float]:
        """Mask strategies and their ratios: ``pretrain_masks``, or ``random`` when fine-tuning; without those of ratio 0."""
        names = self.pretrain_masks if self.train_stage == "pretrain" else ("random",)
        ratios = {name: getattr(self, "mask_ratio" if name == "random" else f"{name}_ratio") for name in names}
        return {name: ratio for name, ratio in ratios.items() if ratio > 0}


@dataclass(frozen=True)
class IdentifierConfig(Settings):
    """What is quantized into an item's semantic ID, and from which features (keys as in the property file)."""

    semantic_ids: str
    fusion: str
    missing_features: str
    builtin_width: int
    text_fields: tuple[str, ...] = ("auto",)
    text_vectors: str = "joined"

    def __post_init__(self) -> None:
        _one_name_as_tuple(self, "text_fields")
        super().__post_init__()
        if self.semantic_ids == "auto":  # training chooses; stages 1 and 2 make the kind that it tries first
            object.__setattr__(self, "semantic_ids", "fused")
        if "auto" in self.text_fields and len(self.text_fields) > 1:
            raise ValueError(f"text_fields is {', '.join(self.text_fields)}; give either auto, or names of columns")

    def code_sets(self, modalities: tuple[str, ...]) -> tuple[str, ...]:
        """Name the code sets in the order of their levels; without modalities, only ``fused`` remains."""
        if self.semantic_ids == "none":
            return ()
        fused = ("fused",) if self.semantic_ids != "per_modality" or not modalities else ()
        return (*fused, *(modalities if self.semantic_ids != "fused" else ()))


Config = TypeVar("Config", bound=Settings)


def with_current_names(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the old names of ``RENAMED_PROPERTIES`` by the new ones.

    >>> with_current_names({"item_rows": False, "seed": 1})
    {'use_item_embedding': False, 'seed': 1}
    """
    return {RENAMED_PROPERTIES.get(name, name): value for name, value in properties.items()}


def read(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration dataclass from a mapping that may hold other keys too.

    Args:
        kind: a frozen dataclass of this module.
        values: property keys and values.

    Raises:
        ValueError: a key has no value, or the dataclass refuses a value.
    """
    arguments = {}
    for field in dataclasses.fields(kind):
        key = kind.keys.get(field.name, kind.prefix + field.name)
        value = values.get(kind.prefix + field.name)
        value = values.get(key) if value is None else value
        if value is not None:
            arguments[field.name] = value
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"property {key!r} has no value; give it one, or leave it out for its default")
    return kind(**arguments)


def check_all(values: Mapping[str, Any]) -> None:
    """Read the settings of all stages once, so that invalid values are refused before any stage spends time.

    Args:
        values: all properties of QBERT4Rec.

    Raises:
        ValueError: names the key and the value.
    """
    values = {**values, "max_length": values.get("MAX_ITEM_LIST_LENGTH")}
    sequence, training = read(SequenceConfig, values), read(TrainConfig, values)
    for kind in (InjectionConfig, QuantizerConfig, IdentifierConfig):
        read(kind, values)
    for key in OF_OUR_MODELS:
        if key in values:
            check_value(key, values[key])
    _require_compatible(sequence, training, values)


def _require_compatible(sequence: SequenceConfig, training: TrainConfig, values: Mapping[str, Any]) -> None:
    """Refuse settings that are right one by one and exclude each other.

    Raises:
        ValueError: names the keys, and which of them to change.
    """
    kind, domains = values.get("semantic_ids"), values.get("domains")
    if kind == "none" and not (sequence.use_item_embedding and sequence.loss != "code"):
        raise ValueError(
            "semantic_ids is none: an item is its embedding alone, which needs use_item_embedding: true and a loss over "
            "items (item or sampled)"
        )
    if kind == "auto" and (training.pretrained or training.train_stage == "pretrain"):
        raise ValueError(
            "semantic_ids is auto, which compares trainings from the beginning; for pretraining, and for fine-tuning of "
            "what was pretrained, name the kind: fused, per_modality, both or none"
        )
    if training.teachers and (sequence.loss != "item" or "causal" not in sequence.views or domains):
        raise ValueError(
            f"teachers is {training.teachers}: a network learns from teachers in the causal view, by a loss over "
            "the items of one data set; set views to causal or both, loss to item and domains to nothing, or no teachers"
        )
    if sequence.loss == "sampled" and domains and training.domain_sampling == "balanced":
        raise ValueError(
            "loss is sampled and domain_sampling is balanced: how often an item is in a batch is known for "
            "proportional sampling alone; set domain_sampling: proportional or loss: item"
        )
    learner = str(values.get("learner", "adamw"))
    rows_learn = sequence.use_item_embedding and "item_embedding" not in training.freeze
    if sequence.loss == "sampled" and rows_learn and learner.lower() != "adamw":
        raise ValueError(
            f"loss is sampled and learner is {learner}: of the learners only adamw steps from gradients of some items; set "
            "learner: adamw or loss: item"
        )
