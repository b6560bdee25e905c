"""recbole_qbert.serving.onnx_model: onnxruntime gives the scores of torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recbole_qbert.serving.export import export_model
from recbole_qbert.serving.onnx_model import ScoringGraph, write_onnx
from tests.test_catalog_ranker import CONFIG, ITEMS, KINDS, LONGEST, histories, make_network, make_prior

pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: onnx)")


def scores_of(network, prior, sequences, lengths):
    with torch.no_grad():
        scores = network.scores(sequences, lengths)
        return scores if prior is None else scores + prior(sequences, lengths)


@pytest.mark.pipeline
@pytest.mark.parametrize("with_prior", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_equals_torch_in_batches_of_any_size(kind, with_prior, tmp_path):
    network, prior = make_network(KINDS[kind]), make_prior() if with_prior else None
    if prior is not None:
        prior.decay.fill_(0.8)
        prior.shrink.fill_(2.0)
    sequences, lengths, _ = histories()
    assert (lengths == LONGEST).any() and (lengths == 1).any()
    assert any(len(set(row[:length].tolist())) < length for row, length in zip(sequences, lengths, strict=True))  # repeats
    wanted = scores_of(network, prior, sequences, lengths)
    write_onnx(network, prior, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 2, len(sequences)):
        (found,) = session.run(["scores"], {"histories": sequences[:size].numpy()})
        assert found.shape == (size, ITEMS)
        torch.testing.assert_close(torch.from_numpy(found), wanted[:size], atol=2e-5, rtol=1e-5)


def test_both_views_and_the_masked_one_alone():
    sequences, lengths, _ = histories()
    for views in (("masked",), ("causal", "masked")):
        network = make_network(replace(CONFIG, score_views=views))
        assert network.config.ranking_views == views
        with torch.no_grad():
            found = ScoringGraph(network, None)(sequences)
        torch.testing.assert_close(found, scores_of(network, None, sequences, lengths), atol=2e-5, rtol=1e-5)


def test_several_catalogs_in_one_graph_are_refused(tmp_path):
    with pytest.raises(ValueError, match="catalogs"):
        write_onnx(make_network(KINDS["codes"], domains=True), None, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_package_nothing_is_read_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_qbert.serving.onnx_model.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install onnx"):
        export_model(tmp_path / "nothing.pth", tmp_path / "exported", format="onnx")
    assert not list(tmp_path.iterdir())
