"""Settings of VQRec and MISSRec; the source of each default is beside the key in ``properties/model/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_qbert.config.property_values import OF_BASELINES, check_value
from recbole_qbert.config.schema import Settings, read


@dataclass(frozen=True)
class _NetworkConfig(Settings):
    """What the networks of both models have, and what ``QBERT4RecTrainer`` asks of every model's settings."""

    keys: ClassVar[Mapping[str, str]] = {"max_length": "MAX_ITEM_LIST_LENGTH"}
    teachers: ClassVar[int] = 0

    hidden_size: int
    n_layers: int
    n_heads: int
    inner_size: int
    hidden_dropout_prob: float
    initializer_range: float
    layer_norm_eps: float
    temperature: float
    max_length: int
    matmul_precision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.n_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}")


@dataclass(frozen=True)
class VQRecConfig(_NetworkConfig):
    """VQRec: network and training."""

    attn_dropout_prob: float
    train_stage: str
    fake_ratio: float
    reassign: str
    reassign_epochs: int
    sinkhorn_iterations: int
    sinkhorn_temperature: float
    pretrained: str | None = None


@dataclass(frozen=True)
class MISSRecConfig(_NetworkConfig):
    """MISSRec: network and training."""

    interest_ratio: float
    interest_weight: float
    score_fusion: str
    use_item_embedding: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; MISSRec ranks by cosines and needs a number above 0")


@dataclass(frozen=True)
class ProductQuantizerConfig(Settings):
    """Item codes of VQRec. Property keys carry the prefix ``opq_``."""

    prefix: ClassVar[str] = "opq_"

    groups: int
    codes: int
    rounds: int
    sample: int


def check_vqrec(values: Mapping[str, Any]) -> None:
    """Read the settings of VQRec once, so that invalid values are refused before any work.

    Raises:
        ValueError: names the key and the value.
    """
    _check(values, VQRecConfig, ProductQuantizerConfig)


def check_missrec(values: Mapping[str, Any]) -> None:
    """Read the settings of MISSRec once, so that invalid values are refused before any work.

    Raises:
        ValueError: names the key and the value.
    """
    _check(values, MISSRecConfig)


def _check(values: Mapping[str, Any], *kinds: type[Settings]) -> None:
    values = {**values, "max_length": values.get("MAX_ITEM_LIST_LENGTH")}
    for kind in kinds:
        read(kind, values)
    for key in values.keys() & {*OF_BASELINES, "missing_features", "text_fields", "builtin_width", "rebuild"}:
        check_value(key, values[key])
