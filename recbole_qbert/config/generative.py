"""Settings of the generative models: frozen dataclasses that are built once from property files and command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from recbole_qbert.config.property_values import OF_OUR_MODELS, check_value
from recbole_qbert.config.schema import Settings, read


@dataclass(frozen=True)
class GenerativeConfig(Settings):
    """What all generative models have. Fields are named as the property keys; the property files document them."""

    keys: ClassVar[Mapping[str, str]] = {"longest": "MAX_ITEM_LIST_LENGTH", "cuts": "topk"}

    longest: int
    cuts: tuple[int, ...] | int
    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_layers: int
    num_decoder_layers: int
    dropout_rate: float
    lr_schedule: str
    warmup_ratio: float
    warmup_steps: int
    adam_betas: tuple[float, float]
    adam_eps: float
    matmul_precision: str
    ranking: str
    beams: int
    valid_users: int
    teachers: ClassVar[int] = 0  # of the trainer: a generative model learns from none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_ratio and self.warmup_steps:
            raise ValueError(
                f"warmup_ratio is {self.warmup_ratio} and warmup_steps is {self.warmup_steps}; set one of them to 0"
            )
        if self.ranking == "beam" and self.beams < self.most:
            raise ValueError(
                f"beams is {self.beams}, but topk asks for ranks up to {self.most}; set beams to {self.most} or more"
            )

    @property
    def most(self) -> int:
        """Return the largest rank that the metrics tell from larger ones."""
        return self.cuts if isinstance(self.cuts, int) else max(self.cuts)


@dataclass(frozen=True)
class TIGERConfig(GenerativeConfig):
    """Settings of TIGER."""

    unused_tokens: int
    user_tokens: int


@dataclass(frozen=True)
class MQL4GRecConfig(GenerativeConfig):
    """Settings of MQL4GRec."""

    unused_tokens: int
    tasks: tuple[str, ...]
    prompt_tokens: int
    fuse: str
    ensemble_bonus: float
    pretrained: str | None = None


def checker(kind: type[GenerativeConfig], *others: type[Settings]) -> Any:
    """Return a function that refuses properties that a generative model cannot have (``registry.register``).

    Args:
        kind: the model's settings.
        others: settings of what makes its IDs.
    """

    def check(values: Mapping[str, Any]) -> None:
        read(kind, {**values, "longest": values.get("MAX_ITEM_LIST_LENGTH"), "cuts": values.get("topk")})
        for other in others:
            read(other, values)
        for key in OF_OUR_MODELS:
            if key in values:
                check_value(key, values[key])

    return check
