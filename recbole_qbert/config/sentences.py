"""Settings of the generative models that read sentences, P5CID and VIP5: frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from recbole_qbert.config.generative import GenerativeConfig
from recbole_qbert.config.schema import Settings


@dataclass(frozen=True, kw_only=True)
class SentenceConfig(GenerativeConfig):
    """Settings of P5CID, and what VIP5 has in common with it. Fields are named as the property keys."""

    new_rows: str
    whole_words: int
    test_prompt: int
    score_end: str
    target_draw: str
    draws: int
    backbone: str | None = None


@dataclass(frozen=True, kw_only=True)
class VIP5Config(SentenceConfig):
    """Settings of VIP5."""

    visual_tokens: int
    missing_image: str
    adapter_reduction: int
    freeze_backbone: bool
    train_tables: bool


@dataclass(frozen=True)
class CollaborativeConfig(Settings):
    """The tree of P5CID's IDs. Property keys carry the prefix ``cid_``."""

    prefix: ClassVar[str] = "cid_"

    clusters: int
    leaf: int
    levels: int


@dataclass(frozen=True)
class NumberConfig(Settings):
    """What VIP5 reads of a data set: item numbers and pictures."""

    item_numbers: str
    image_features: str
    visual_tokens: int
