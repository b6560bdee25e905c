"""The packed T5: equal to transformers' own, to plain re-computations, and to itself whatever stands beside a row."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_qbert.generative import t5_weights
from recbole_qbert.generative.packed_tokens import LengthGroups, PackedTokens
from recbole_qbert.generative.relative_bias import buckets, distance_table
from recbole_qbert.generative.t5 import T5, RMSNorm, T5Sizes, shift
from tests.helpers_generative import import_transformers, write_t5

SMALL = {"vocab_size": 50, "d_model": 20, "d_ff": 36, "d_kv": 6, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}


def network(seed=0, dropout=0.0, **changes):
    torch.manual_seed(seed)
    return T5(T5Sizes(**{**SMALL, **changes}, dropout_rate=dropout))


def batch(seed=1, rows=9, longest=40, targets=4, vocab=50):
    """Token matrices with holes at the right, and targets."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    tokens = torch.randint(1, vocab, (rows, longest), generator=generator)
    matrix = torch.where(torch.arange(longest) < lengths[:, None], tokens, -1)
    return matrix, torch.randint(1, vocab, (rows, targets), generator=generator)


def transformers_t5(sizes):
    transformers = import_transformers()
    torch.manual_seed(5)
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0, feed_forward_proj="relu")
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():  # norms start at 1, which would hide a missing weight
        for name, value in model.named_parameters():
            if "layer_norm" in name:
                value.uniform_(0.5, 1.5)
    return model


def loss_and_states(model, matrix, targets):
    source = PackedTokens.of(matrix)
    encoded = model.encode(source)
    targets = targets[source.order]
    logits = model.logits(model.decode(shift(targets), encoded))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), encoded, source, logits


def test_states_loss_and_gradients_equal_those_of_transformers(tmp_path):
    """Heads times their width is not the width of the model; rows of 1 to 40 tokens; weights through a saved folder."""
    theirs = transformers_t5(SMALL).train()
    theirs.save_pretrained(tmp_path / "t5")
    config, weights = t5_weights.read_folder(tmp_path / "t5")
    ours = T5(t5_weights.sizes_of(config, 0.0)).train()
    t5_weights.copy_weights(ours, weights)
    matrix, targets = batch()
    loss, encoded, source, logits = loss_and_states(ours, matrix, targets)
    out = theirs(input_ids=matrix.clamp(min=0), attention_mask=(matrix >= 0).long(), labels=targets)
    assert loss.item() == pytest.approx(out.loss.item(), abs=1e-5)
    assert torch.allclose(source.unsorted(logits), out.logits, atol=1e-5)
    packed = out.encoder_last_hidden_state[source.order][(matrix >= 0)[source.order]]
    assert torch.allclose(encoded.states, packed, atol=1e-5)
    loss.backward(), out.loss.backward()
    grads = {name: value.grad for name, value in theirs.named_parameters()}
    assert torch.allclose(ours.embedding.grad, grads["shared.weight"], atol=1e-5)
    for stack, name in ((ours.encoder, "encoder"), (ours.decoder, "decoder")):
        table = grads[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        assert torch.allclose(stack.distance.grad, table.T, atol=1e-5) and table.abs().max() > 0
        for number, block in enumerate(stack.blocks):
            here = f"{name}.block.{number}.layer"
            joint = torch.cat([grads[f"{here}.0.SelfAttention.{part}.weight"] for part in "qkv"])
            assert torch.allclose(block.attention.joint.weight.grad, joint, atol=1e-5)
            feed = f"{here}.{2 if name == 'decoder' else 1}"
            assert torch.allclose(block.feed.norm.weight.grad, grads[f"{feed}.layer_norm.weight"], atol=1e-5)
            assert torch.allclose(block.feed.grow.weight.grad, grads[f"{feed}.DenseReluDense.wi.weight"], atol=1e-5)
    cross = ours.decoder.blocks[0].cross
    joint = torch.cat([grads[f"decoder.block.0.layer.1.EncDecAttention.{part}.weight"] for part in "kv"])
    assert torch.allclose(cross.joint.weight.grad, joint, atol=1e-5)


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    write_t5(tmp_path / "gated", tokenizer=False, feed_forward_proj="gated-gelu")
    with pytest.raises(ValueError, match=r"feed_forward_proj.*gated-gelu"):
        t5_weights.read_folder(tmp_path / "gated")
    (tmp_path / "gated" / "config.json").write_text('{"d_model": 3}')
    with pytest.raises(ValueError, match="vocab_size"):
        t5_weights.read_folder(tmp_path / "gated")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        t5_weights.read_folder(tmp_path / "nowhere")


def test_new_tokens_keep_rows_of_their_own(tmp_path):
    """Rows of one mean, as transformers draws them by default, would make all new tokens start as one."""
    theirs = transformers_t5(SMALL)
    ours = network(vocab_size=90)
    t5_weights.copy_weights(ours, dict(theirs.state_dict()))
    assert torch.equal(ours.embedding[:50], theirs.shared.weight)
    new = F.normalize(ours.embedding[50:].detach(), dim=1)
    likeness = (new @ new.T)[~torch.eye(40, dtype=bool)]
    assert likeness.mean().abs() < 0.1
    with pytest.raises(ValueError, match=r"shared\.weight"):
        t5_weights.copy_weights(network(vocab_size=40), dict(theirs.state_dict()))


def test_parameters_are_those_of_the_published_sizes():
    published = {"d_model": 128, "d_ff": 1024, "d_kv": 64, "num_heads": 6, "num_layers": 4, "num_decoder_layers": 4}
    model = network(vocab_size=1026, **published)
    assert sum(p.numel() for p in model.body_parameters()) == 4_459_648
    assert sum(p.numel() for p in model.parameters()) == 4_590_976
    assert sum(p.numel() for p in model.encoder.blocks[0].parameters()) == 459_008
    assert sum(p.numel() for p in model.decoder.blocks[0].parameters()) == 655_744


def test_initial_spreads_are_t5s():
    model = network(vocab_size=4000, d_model=64, d_ff=256, d_kv=16, num_heads=8)
    block = model.decoder.blocks[0]
    spread = {
        1.0: model.embedding, (64 * 16) ** -0.5: block.attention.joint.weight[:128], 64**-0.5: block.cross.joint.weight,
        128**-0.5: block.cross.mix.weight, 256**-0.5: block.feed.shrink.weight,
    }  # fmt: skip
    for expected, weight in spread.items():
        assert weight.std().item() == pytest.approx(expected, rel=0.05)


def test_buckets_by_hand():
    """32 buckets up to distance 128: two-sided 8 single ones a side, one-sided 16."""
    two = {0: 0, 1: 17, -1: 1, 7: 23, -7: 7, 8: 24, 15: 25, 16: 26, 127: 31, 128: 31, -8: 8, -128: 15, 500: 31}
    one = {0: 0, 1: 0, 5: 0, -1: 1, -15: 15, -16: 16, -127: 31, -128: 31, -31: 21}
    for table, two_sided in ((two, True), (one, False)):
        numbers = buckets(torch.tensor(list(table)), 32, 128, two_sided)
        assert numbers.tolist() == list(table.values())
    bias = torch.randn(3, 32)
    expanded = distance_table(bias, 20, 128, True)
    assert torch.equal(expanded[:, 19], bias[:, 0]) and torch.equal(expanded[:, 20], bias[:, 17])
    assert expanded.shape == (3, 39)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_and_its_gradients_are_autograds(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(7).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    values = torch.randn(3, 5, 7, dtype=dtype, requires_grad=True)
    plain = values.detach().clone().requires_grad_()
    weight = norm.weight.detach().clone().requires_grad_()
    expected = plain / (plain.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    push = torch.randn_like(expected)
    norm(values).backward(push), expected.backward(push)
    assert torch.allclose(norm(values), expected, atol=1e-6)
    assert torch.allclose(values.grad, plain.grad, atol=1e-6)
    assert torch.allclose(norm.weight.grad, weight.grad, atol=1e-5)


def test_a_rows_loss_does_not_depend_on_its_neighbors():
    model = network().eval()
    matrix, targets = batch(rows=12)
    _, _, source, logits = loss_and_states(model, matrix, targets)
    together = source.unsorted(logits)
    for row in range(12):
        alone = loss_and_states(model, matrix[row : row + 1], targets[row : row + 1])[3]
        assert torch.allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize("longest", [10, 40])
def test_kernels_and_products_compute_the_same_with_gradients(longest):
    """In training with a tiny dropout rate the compiled and the matrix way are taken; they must agree with no dropout."""
    torch.manual_seed(3)
    exact, dropping = network(), network(dropout=1e-9)
    matrix, targets = batch(longest=longest)
    losses = []
    for model in (exact, dropping):
        model.train()
        loss = loss_and_states(model, matrix, targets)[0]
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for (name, one), other in zip(exact.named_parameters(), dropping.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=2e-5), name


def test_padded_groups_compute_what_packed_ones_do(monkeypatch):
    """A device other than the CPU has one padded group."""
    from recbole_qbert.sequence.packing import PackedSequences

    matrix, targets = batch()
    model = network().eval()
    expected = loss_and_states(model, matrix, targets)[0]
    one = classmethod(lambda cls, lengths: cls((PackedSequences.of(lengths, int(lengths[-1])),)))
    monkeypatch.setattr(LengthGroups, "of", one)
    assert loss_and_states(model, matrix, targets)[0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_dropout_acts_in_training_only_and_changes_with_the_seed():
    model = network(dropout=0.3)
    matrix, targets = batch()
    with torch.no_grad():
        model.train()
        torch.manual_seed(1)
        one = loss_and_states(model, matrix, targets)[0]
        other = loss_and_states(model, matrix, targets)[0]
        torch.manual_seed(1)
        again = loss_and_states(model, matrix, targets)[0]
        model.eval()
        still = [loss_and_states(model, matrix, targets)[0].item() for _ in range(2)]
    assert one == again and one != other and still[0] == still[1]


def test_one_batch_is_learned_by_heart_from_the_loss_of_chance():
    """The first loss is near the logarithm of the vocabulary."""
    model = network(d_model=32, d_ff=64, d_kv=8)
    matrix, targets = batch(rows=16, longest=12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = loss_and_states(model, matrix, targets)[0].item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_and_states(model, matrix, targets)[0]
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(50), abs=1.2) and loss.item() < 0.01


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        PackedTokens.of(torch.tensor([[1, 2], [-1, -1]]))
    with pytest.raises(ValueError, match="ascend"):
        LengthGroups.of(torch.tensor([2, 1]))


def test_holes_anywhere_in_a_row_are_left_out_and_rows_come_back_in_order():
    matrix = torch.tensor([[-1, 5, -1, 6, 7], [8, -1, -1, -1, -1], [-1, -1, 9, 4, -1]])
    source = PackedTokens.of(matrix)
    assert source.tokens.tolist() == [8, 9, 4, 5, 6, 7]
    assert source.order.tolist() == [1, 2, 0] and source.rows.lengths.tolist() == [1, 2, 3]
    assert source.unsorted(torch.tensor([10, 20, 30])).tolist() == [30, 10, 20]
