"""Semantic IDs for new items by the frozen weights of stages 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.config.schema import InjectionConfig, QuantizerConfig
from recbole_qbert.data.item_features import STRUCTURE, ItemFeatures, one_vector
from recbole_qbert.data.standardization import Standardization
from recbole_qbert.injection.concatenation import Concatenation
from recbole_qbert.injection.network import DynamicInjection
from recbole_qbert.quantization import collision_resolution, semantic_ids
from recbole_qbert.quantization.residual_quantizer import ResidualQuantizer
from recbole_qbert.quantization.rqvae import RQVAE
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.utils.cached_step import read_manifest, require_outputs
from recbole_qbert.utils.io import atomic_write


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save  # imported here, so that importing this package imports no more than RecBole does

    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def injection_weights(network: DynamicInjection) -> dict[str, Tensor]:
    """Return the weights of stage 1 to save: all but the query vectors of single items, which no new item has."""
    weights = {name: value for name, value in network.state_dict().items() if name != "query.weight"}
    return weights | {"no_id": network.query.weight.detach()[network.no_id]}


@dataclass(frozen=True)
class Tokenizer:
    """A trained vocabulary of semantic IDs.

    Attributes:
        ids: semantic IDs of the items that it was trained on.
        fusion: stage 1; ``None`` where no code set needs it.
        quantizers: code set -> ``(quantizer, standardization)`` of stage 2, in the order of the levels.
    """

    ids: SemanticIDs
    fusion: DynamicInjection | Concatenation | None
    quantizers: dict[str, tuple[ResidualQuantizer, Standardization]]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what stages 1 and 2 wrote into a folder.

        Raises:
            FileNotFoundError: the folder holds no vocabulary, or only a part of one.
            ValueError: the folder holds several, or a file is not what stages 1 and 2 wrote.
        """
        from safetensors.torch import load_file

        paths = sorted(folder.glob("*.quantizer.safetensors"))
        if not paths:
            raise FileNotFoundError(
                f"{folder} holds no *.quantizer.safetensors; make one with 'run_recbole_qbert.py quantize'"
            )
        if len(paths) > 1:
            raise ValueError(f"{folder} holds several vocabularies: {', '.join(path.name for path in paths)}")
        name = paths[0].name.removesuffix(".quantizer.safetensors")
        ids_file = folder / f"{name}.sid"
        inputs = _stage_inputs(folder / f"{name}.sid.manifest.json", paths[0], ids_file)
        if "collisions" in inputs:
            raise ValueError(
                f"{ids_file} tells items apart by a last level that counts them (collisions: {inputs['collisions']}), which "
                "new items cannot be given afterwards; build IDs with collisions: reallocate"
            )
        weights = load_file(paths[0])
        config = _quantizer_config(inputs["settings"])
        quantizers = {}
        for code_set in inputs["code_sets"]:
            state = {k.removeprefix(f"{code_set}."): v for k, v in weights.items() if k.startswith(f"{code_set}.")}
            standardization = Standardization.of_tensors(state)
            for key in standardization.tensors():
                del state[key]
            quantizer = new_quantizer(standardization.width, config)
            quantizer.load_state_dict(state)
            quantizers[code_set] = quantizer.eval(), standardization
        fusion: DynamicInjection | Concatenation | None = None
        if "fused" in quantizers:
            file = folder / f"{name}.injection.safetensors"
            inputs = _stage_inputs(folder / f"{name}.injection.manifest.json", file)
            weights = load_file(file)
            if inputs.get("fusion") == "concatenation":
                fusion = Concatenation.of_tensors(weights)
            else:
                fusion = _load_injection(weights, _injection_config(inputs["settings"]))
        return cls(semantic_ids.load(ids_file), fusion, quantizers)

    def extended(self, more: SemanticIDs, source: str, domain: str = "") -> Tokenizer:
        """Return a copy of the vocabulary that also has the IDs which ``add`` returned earlier.

        Args:
            more: the IDs that ``add`` returned.
            source: name of ``more`` in an error.
            domain: data set of a union whose items ``more`` holds, under the item tokens of that data set; '' for all.

        Raises:
            ValueError: ``more`` does not extend this vocabulary.
        """
        own = self.ids.of_domain(domain) if domain else self.ids
        compatible = more.vocabulary == own.vocabulary and more.prefixes == own.prefixes
        if not compatible or not np.array_equal(more.aligned(own.items, source), own.codes):
            raise ValueError(f"{source} is of another vocabulary; name a file that 'add' wrote with this one")
        own_items = set(own.items)
        rows = [row for row, item in enumerate(more.items) if item not in own_items]
        items = tuple(f"{domain}/{more.items[row]}" if domain else more.items[row] for row in rows)
        ids = replace(self.ids, items=self.ids.items + items, codes=np.concatenate([self.ids.codes, more.codes[rows]]))
        return replace(self, ids=ids)

    @torch.no_grad()
    def add(self, new: ItemFeatures) -> SemanticIDs:
        """Assign IDs to new items, different from each other and from all existing IDs, which do not change.

        New items are fused with the shared 'no ID' query and quantized with the frozen weights. Where IDs collide, only new
        items move. The paper is silent; chosen because IDs that models were trained with must stay.

        Args:
            new: features of ``N_new`` items, from the encoders of the vocabulary's features.

        Returns:
            The existing IDs, followed by the new ones.

        Raises:
            ValueError: an item has an ID already, or features are missing or of another width.
        """
        existing = set(self.ids.items)
        repeated = [item for item in new.items if item in existing]
        if repeated:
            raise ValueError(f"{len(repeated)} items have a semantic ID already (first: {repeated[0]}); leave them out")
        new = self._with_absent_structure(new)
        self._check_features(new)
        levels = len(self.ids.prefixes) // len(self.quantizers)
        blocks = []
        for number, (code_set, (quantizer, standardization)) in enumerate(self.quantizers.items()):
            vectors, has_vector = self._vectors(code_set, new, standardization.mean)
            taken = self.ids.codes[:, number * levels : (number + 1) * levels]
            codes, latents = quantizer.encode(standardization(torch.from_numpy(vectors)))
            block = np.full((len(new.items), levels), -1, dtype=np.int16)
            block[has_vector] = collision_resolution.reallocate(
                codes.numpy()[has_vector],
                latents.numpy()[has_vector],
                quantizer.codebooks.numpy(),
                [item for item, has in zip(new.items, has_vector, strict=True) if has],
                taken[(taken >= 0).all(1)],
            )
            blocks.append(block)
        both = SemanticIDs(
            self.ids.items + new.items,
            np.concatenate([self.ids.codes, np.concatenate(blocks, 1)]),
            self.ids.prefixes,
            self.ids.size,
            self.ids.vocabulary,
        )
        semantic_ids.require_unique(both, "the extended vocabulary")
        return both

    def _with_absent_structure(self, new: ItemFeatures) -> ItemFeatures:
        """Say that new items have no structural vector, where the vocabulary has any: they are in no history."""
        width = self._widths().get(STRUCTURE)
        return new if width is None else new.with_vectors(STRUCTURE, np.zeros((len(new.items), width), np.float32))

    def _widths(self) -> dict[str, int]:
        """Modality -> width of the features that the vocabulary was made from."""
        widths = {name: len(part.mean) for name, (_, part) in self.quantizers.items() if name != "fused"}
        if isinstance(self.fusion, Concatenation):
            widths |= {name: len(part.mean) for name, part in self.fusion.parts.items()}
        elif self.fusion is not None:
            widths |= {name: int(layer.in_features) for name, layer in self.fusion.project.items()}  # type: ignore[arg-type]
        return widths

    def _check_features(self, new: ItemFeatures) -> None:
        for name, width in self._widths().items():
            if name not in new.vectors or new.vectors[name].shape[2] != width:
                actual = new.vectors[name].shape[2] if name in new.vectors else "no such features"
                raise ValueError(
                    f"the vocabulary was made from {name} features {width} wide; the new items have {actual}. Encode them "
                    "with the encoder of the other items"
                )

    def _vectors(self, code_set: str, new: ItemFeatures, mean: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Vectors to quantize, ``[N, D]``, and which items have one, ``[N]`` bool."""
        fusion, every = self.fusion, np.ones(len(new.items), dtype=bool)
        if code_set == "fused" and isinstance(fusion, Concatenation):
            return fusion(new.vectors, new.present), every
        if code_set == "fused" and isinstance(fusion, DynamicInjection):
            rows = torch.full((len(new.items),), fusion.no_id)
            vectors = {name: torch.from_numpy(new.vectors[name]) for name in fusion.project}
            present = {name: torch.from_numpy(new.present[name]) for name in fusion.project}
            return fusion(rows, vectors, present).vector.numpy(), every
        has_vector = new.present[code_set].any(1)
        vector = one_vector(new.vectors[code_set], new.present[code_set])
        if code_set == next(iter(self.quantizers)):  # an item without any modality gets the mean vector
            featureless = ~np.any([new.present[modality].any(1) for modality in self.quantizers], axis=0)
            vector = np.where(featureless[:, None], mean.numpy(), vector)
            has_vector = has_vector | featureless
        return vector, has_vector


def new_quantizer(inputs: int, config: QuantizerConfig) -> ResidualQuantizer:
    """Return an untrained quantizer of the method that a configuration names, for vectors ``inputs`` wide."""
    return (RQVAE if config.method == "rqvae" else ResidualQuantizer)(inputs, config)


def _quantizer_config(settings: Mapping[str, Any]) -> QuantizerConfig:
    """Read the settings of a vocabulary; before version 0.3 all were of an RQ-VAE, and four settings of training are new."""
    before = {"method": "rqvae", "warmup_steps": 0, "steps": 0, "kmeans_sample": 1, "axes": 1}
    return QuantizerConfig(**{**before, **settings})


def _injection_config(settings: Mapping[str, Any]) -> InjectionConfig:
    """Read the settings of stage 1; before version 0.3 ``dynamic`` was the gate that is called ``paper`` now."""
    old = "attention" not in settings and settings["gate"] == "dynamic"
    return InjectionConfig(**{**settings, "gate": "paper" if old else settings["gate"]})


def _load_injection(weights: dict[str, Tensor], config: InjectionConfig) -> DynamicInjection:
    widths = {
        name.split(".")[1]: value.shape[1]
        for name, value in weights.items()
        if name.startswith("project.") and name.endswith(".weight")
    }
    network = DynamicInjection(0, widths, config)
    network.load_state_dict({"query.weight": weights.pop("no_id")[None], **weights})
    return network.eval()


def _stage_inputs(manifest: Path, *files: Path) -> dict[str, Any]:
    """Read the inputs of a stage of the vocabulary from its manifest, and check files that it wrote."""
    way_out = "it says how the vocabulary was made. Run quantize again"
    if not manifest.exists():
        raise FileNotFoundError(f"{manifest} is missing; {way_out}")
    require_outputs(manifest, files, "run quantize again")
    try:
        return read_manifest(manifest)[0]
    except ValueError as error:
        raise ValueError(f"{error}; {way_out}") from error
