"""recbole_qbert.sequence.packing: packed tokens and padded rows, there and back, and through the encoder."""

from __future__ import annotations

import pytest
import torch

from recbole_qbert.sequence.encoder import SequenceEncoder
from recbole_qbert.sequence.packing import PackedSequences

LENGTHS = torch.tensor([3, 1, 5, 4, 0])


@pytest.mark.parametrize("width", [5, 7])
def test_tokens_are_padded_row_by_row_and_packed_again(width):
    rows = PackedSequences.of(LENGTHS, width)
    tokens = torch.arange(26.0).view(13, 2) + 1
    padded = rows.pad(tokens)
    assert padded.shape == (5, width, 2)
    expected = torch.zeros(5, width, 2)
    expected[torch.arange(width) < LENGTHS[:, None]] = tokens
    assert torch.equal(padded, expected)
    assert torch.equal(rows.pack(padded), tokens)
    assert torch.equal(rows.pack(padded + 100.0 * (padded == 0)), tokens)  # whatever stands at padding


def test_gradients_go_the_same_way_back():
    rows = PackedSequences.of(LENGTHS, 5)
    tokens = torch.randn(13, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (rows.pad(x) + 3) ** 2, tokens)
    padded = torch.randn(5, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rows.pack(x) ** 2, padded)


def test_rows_of_one_length_are_only_viewed():
    rows, tokens = PackedSequences.of(torch.tensor([3, 3]), 3), torch.randn(6, 2)
    assert rows.pad(tokens).data_ptr() == tokens.data_ptr() == rows.pack(rows.pad(tokens)).data_ptr()


@pytest.mark.parametrize("causal", [True, False])
def test_packed_rows_are_encoded_as_each_alone_with_the_same_gradients(causal):
    torch.manual_seed(0)
    encoder = SequenceEncoder(width=8, layers=2, heads=2, inner=12, dropout=0.0, attention_dropout=0.0, positions=9).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    groups = [torch.tensor([2, 4, 1]), torch.tensor([8, 5])]
    tokens = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    goal = torch.randn(20, 8, dtype=torch.float64)

    def gradients(states):
        return [states, *torch.autograd.grad((states * goal).sum(), [tokens, *encoder.parameters()])]

    layout = [(PackedSequences.of(lengths, int(lengths.max())), causal) for lengths in groups]
    lengths = torch.cat(groups)
    alone = [encoder(row[None], torch.tensor([len(row)]), causal)[0] for row in tokens.split(lengths.tolist())]
    for mine, true in zip(gradients(encoder.encode(tokens, layout)), gradients(torch.cat(alone)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-11)
