"""Resumable epochs: stages 1 and 2 that resume after any epoch equal an uninterrupted run."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recbole_qbert.config.property_files import property_file
from recbole_qbert.config.schema import InjectionConfig, QuantizerConfig
from recbole_qbert.injection import training as injection_training
from recbole_qbert.quantization import rqvae
from recbole_qbert.utils.resumable_epochs import Epochs
from recbole_qbert.utils.resume_file import ResumeFile

INJECTION = InjectionConfig(
    modalities=("text", "image"), query="random", dim=8, layers=3, heads=2, dropout=0.1, gate="paper", temperature=0.1,
    contrast_temperature=0.07, consistency=0.1, depth_cost=0.002, id_dropout=0.2, learning_rate=0.01, weight_decay=0.01,
    batch_size=16, epochs=6, patience=2, holdout=0.2,
)  # fmt: skip
QUANTIZER = QuantizerConfig(
    method="rqvae", levels=3, codes=8, dim=4, hidden=(16,), learning_rate=0.01, weight_decay=0.0, batch_size=16,
    warmup_steps=0, steps=0, beta=0.25, kmeans_iterations=5, kmeans_sample=1000, axes=100, warmup_epochs=2, epochs=5,
)  # fmt: skip


class KilledError(Exception):
    """Stands for a kill."""


def killed_after(epochs: int):
    """A progress bar that ends everything before an epoch, counted over all trainings."""
    left = [epochs]

    def bar(numbers: range):
        for number in numbers:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            yield number

    return bar


def counting(done: list[int]):
    """A progress bar that writes down what is run."""

    def bar(numbers: range):
        for number in numbers:
            yield number
            done.append(number)

    return bar


def inject(epochs: Epochs | None, config: InjectionConfig = INJECTION):
    random = np.random.default_rng(1)
    base = random.normal(size=(40, 3))
    vectors = {n: (base @ random.normal(size=(3, 6)))[:, None].astype(np.float32) for n in ("text", "image")}
    present = {name: np.ones((40, 1), dtype=bool) for name in vectors}
    network, fused, depth, report = injection_training.fit(vectors, present, config, 5, None, epochs)
    return network.state_dict() | {"fused": torch.from_numpy(fused), "depth": torch.from_numpy(depth)}, asdict(report)


def inject_by_tested_gates(epochs: Epochs | None):
    config = replace(INJECTION, query="concatenation", gate="auto", reconstruction=10.0, attention="every_vector")
    return inject(epochs, config)


def quantize(epochs: Epochs | None):
    vectors = torch.randn(60, 10, generator=torch.Generator().manual_seed(2))
    model, report = rqvae.fit(vectors, QUANTIZER, 7, epochs)
    return model.state_dict(), asdict(report)


@pytest.mark.pipeline
@pytest.mark.parametrize("stage", [inject, inject_by_tested_gates, quantize])
def test_resumed_after_any_epoch_equals_an_uninterrupted_run(tmp_path: Path, stage) -> None:
    path = tmp_path / "x.progress"
    states: list[bytes | None] = []  # the file as a kill before each epoch would leave it

    def reading(numbers: range):
        for number in numbers:
            states.append(path.read_bytes() if path.exists() else None)
            yield number

    weights, report = stage(Epochs(path, "this", reading, seconds=0))
    assert len(states) >= 7 and states[0] is None and None not in states[1:]
    for completed, state in enumerate(states):
        path.write_bytes(state) if state else path.unlink()
        done: list[int] = []
        resumed, resumed_report = stage(Epochs(path, "this", counting(done), seconds=1e9))
        assert len(done) == len(states) - completed and resumed_report == report
        for name, value in weights.items():
            assert torch.equal(resumed[name], value), (completed, name)


def test_a_state_of_other_inputs_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "x.progress"
    with pytest.raises(KilledError):
        quantize(Epochs(path, "this", killed_after(4), seconds=0))
    done: list[int] = []
    quantize(Epochs(path, "other", counting(done), seconds=0))
    assert len(done) == 2 + 5  # epochs of warm-up and of training


@pytest.mark.parametrize("content", [b"PK nothing", b"", b"\x80\x02.", b"\x80\x02}q\x00(a."])
def test_a_damaged_file_is_logged_and_replaced(tmp_path: Path, caplog, content: bytes) -> None:
    """Also if torch's reader fails with an IndexError."""
    path = tmp_path / "x.progress"
    path.write_bytes(content)
    with caplog.at_level("WARNING", "recbole_qbert"):  # RecBole sets the root's level
        weights, _ = quantize(Epochs(path, "this", seconds=0))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(path) in record.getMessage()
    assert all(torch.equal(weights[name], value) for name, value in quantize(None)[0].items())


def test_a_changed_weight_of_a_state_is_noticed(tmp_path: Path, caplog) -> None:
    file = ResumeFile(tmp_path / "x.progress", "run")
    weights = torch.arange(100.0)
    file.save({"weights": weights})
    state = file.load()
    assert state is not None and torch.equal(state["weights"], weights)
    content = file.path.read_bytes()
    place = content.find(weights.numpy().tobytes()) + 47
    file.path.write_bytes(content[:place] + bytes([content[place] ^ 128]) + content[place + 1 :])
    assert file.load() is None
    assert str(file.path) in caplog.text


def test_short_work_writes_nothing(tmp_path: Path) -> None:
    quantize(Epochs(tmp_path / "x.progress", "this"))
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_early_stopping_is_remembered(tmp_path: Path) -> None:
    """Killed in the second training, the first one is not repeated, whatever ended it."""
    path = tmp_path / "x.progress"
    _, report = inject(None)
    with pytest.raises(KilledError):
        inject(Epochs(path, "this", killed_after(len(report["held_out_loss"]) + report["more_epochs"] - 1), seconds=0))
    done: list[int] = []
    inject(Epochs(path, "this", counting(done), seconds=0))
    assert len(done) == 1


def test_a_rebuild_ignores_the_state_of_a_killed_build(tmp_path: Path, monkeypatch, caplog) -> None:
    from recbole_qbert.pipeline import builder
    from recbole_qbert.pipeline.builder import SemanticIDBuilder
    from recbole_qbert.pipeline.catalog import Catalog, stage_settings
    from tests.helpers_recbole import QUICK, write_dataset

    data = write_dataset(tmp_path, "D")
    items = tuple((data / "D" / "D.items.txt").read_text().split())
    defaults = yaml.safe_load(property_file("model/QBERT4Rec.yaml").read_text())
    settings = stage_settings(defaults | QUICK["QBERT4Rec"] | {"semantic_ids": "fused", "injection_query": "random"})
    catalog = Catalog("D", tmp_path / "D", items, [])
    at_once = functools.partial(Epochs, seconds=0)
    monkeypatch.setattr(builder, "Epochs", lambda path, inputs, _: at_once(path, inputs, killed_after(4)))
    with pytest.raises(KilledError):
        SemanticIDBuilder(catalog, settings, tmp_path / "out").build()
    assert list((tmp_path / "out").glob("*.progress"))
    monkeypatch.setattr(builder, "Epochs", at_once)
    with caplog.at_level("INFO", "recbole_qbert"):
        SemanticIDBuilder(catalog, settings, tmp_path / "out", rebuild=True).build()
    assert "resuming" not in caplog.text and not list((tmp_path / "out").glob("*.progress"))
