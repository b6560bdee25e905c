"""recbole_qbert.sequence.attention: the compiled kernels give what torch gives, and the gradients; dropout; threads."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch

from benchmarks import attention as measured
from benchmarks import readme_tables, steps
from recbole_qbert.sequence import attention
from recbole_qbert.sequence.attention import Attention
from recbole_qbert.sequence.kernels import dispatch
from recbole_qbert.sequence.packing import PackedSequences

PARTS = [([2, 5, 1], False), ([9, 12, 10], False), ([4, 3], True), ([11], True)]
TOKENS, HEADS, WIDTH = 57, 2, 8


def made(dtype=torch.float64, seed=0):
    """Queries, keys and values of all tokens, biases of distances, and a function of both that attends."""
    torch.manual_seed(seed)
    joint = torch.randn(TOKENS, 3 * WIDTH, dtype=dtype, requires_grad=True)
    distance = torch.randn(HEADS, 2 * 12 - 1, dtype=dtype, requires_grad=True)
    parts = [(PackedSequences.of(torch.tensor(lengths), max(lengths)), causal) for lengths, causal in PARTS]
    return joint, distance, lambda joint, distance, rate=0.0: Attention(parts, distance)(joint, rate)


def by_hand(joint, distance):
    """One token, one head and one key after the other."""
    out, begin, size = [], 0, WIDTH // HEADS
    for lengths, causal in PARTS:
        for length in lengths:
            query, key, value = joint[begin : begin + length].split(WIDTH, 1)
            for i in range(length):
                heads = []
                for head in range(HEADS):
                    part = slice(head * size, (head + 1) * size)
                    seen = range(i + 1 if causal else length)
                    logits = [query[i, part] @ key[j, part] / size**0.5 + distance[head, 11 + j - i] for j in seen]
                    heads.append(torch.stack(logits).softmax(0) @ value[: len(seen), part])
                out.append(torch.cat(heads))
            begin += length
    return torch.stack(out)


def gradients(found, joint, distance):
    goal = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found).sin()
    return [found, *torch.autograd.grad((found * goal).sum(), [joint, distance])]


@pytest.mark.pipeline
@pytest.mark.parametrize("compiled", [True, False])
def test_attention_and_its_gradients_are_those_by_hand(compiled):
    joint, distance, attend = made()
    true = gradients(by_hand(joint, distance), joint, distance)
    with nullcontext() if compiled else dispatch.without_kernels():  # which is what a GPU gets
        found = gradients(attend(joint, distance), joint, distance)
    for mine, expected in zip(found, true, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)


def test_single_precision_stays_close():
    joint, distance, attend = made(torch.float32)
    true = gradients(by_hand(joint.double(), distance.double()), joint, distance)
    for mine, expected in zip(gradients(attend(joint, distance), joint, distance), true, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.pipeline
def test_dropout_has_its_gradient():
    """With the same seed the same weights are dropped, so that the function can be differentiated numerically."""
    joint, distance, attend = made()

    def seeded(joint, distance):
        torch.manual_seed(5)
        return attend(joint, distance, 0.4)

    assert not torch.equal(seeded(joint, distance), attend(joint, distance))
    assert torch.autograd.gradcheck(seeded, (joint, distance))


@pytest.mark.pipeline
def test_dropout_keeps_the_mean_and_drops_each_weight_apart():
    """Values that are 1 give the sum of the weights that are left, times ``1 / (1 - rate)``."""
    joint, distance, attend = made()
    joint = joint.detach().clone()
    joint[:, 2 * WIDTH :] = 1
    torch.manual_seed(1)
    sums = torch.stack([attend(joint, distance, 0.3) for _ in range(4000)])
    plain = attend(joint, distance)
    torch.testing.assert_close(plain, torch.ones_like(plain))
    alone = 7  # the only token of its row: one weight, of 1
    assert sums[:, alone].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    sums = sums.detach()
    assert ((sums.mean(0) - 1).abs() < 5 * sums.std(0).amax() / 4000**0.5).all()
    one, two = sums[:, alone, 0], sums[:, alone, WIDTH // HEADS]
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.08  # heads drop apart


def test_threads_change_nothing(monkeypatch):
    joint, distance, attend = made()

    def seeded():
        torch.manual_seed(2)
        return gradients(attend(joint, distance, 0.2), joint, distance)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = seeded()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(dispatch, "MIN_WORK", 16)
    for mine, expected in zip(seeded(), alone, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-13)


def test_the_benchmark_of_lengths_prints_a_line_a_length(monkeypatch, capsys):
    for limit in ("MAX_KERNEL_LENGTH", "MAX_KERNEL_LENGTH_WITH_DROPOUT"):
        monkeypatch.setattr(attention, limit, 1)  # which it lifts
    measured.main(["--lengths", "2", "5", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [[k, "length", n] for k in ("ranking", "training") for n in "25"]
    assert attention.MAX_KERNEL_LENGTH == 5


def test_no_rows_and_long_rows(monkeypatch):
    distance = torch.randn(HEADS, 2 * 40 - 1)
    nothing = [(PackedSequences.of(torch.tensor([], dtype=torch.long), 3), True)]
    assert Attention(nothing, distance)(torch.zeros(0, 24), 0.0).shape == (0, 8)
    joint, lengths = torch.randn(45, 3 * WIDTH), torch.tensor([40, 5])
    attend = Attention([(PackedSequences.of(lengths, 40), False)], distance)
    left_to_torch = attend(joint, 0.0)
    monkeypatch.setattr(attention, "MAX_KERNEL_LENGTH", 40)
    torch.testing.assert_close(attend(joint, 0.0), left_to_torch)
    clipped = PackedSequences.of(torch.tensor([2, 7]), 3)  # lengths that are wrong reach no kernel
    assert clipped.lengths.tolist() == [2, 3] and len(clipped.position) == 5


def test_rows_that_are_too_long_are_refused():
    distance = torch.zeros(HEADS, 2 * 3 - 1)
    with pytest.raises(ValueError, match=r"4.*3"):
        Attention([(PackedSequences.of(torch.tensor([1, 4]), 4), True)], distance)


def test_the_benchmark_writes_a_row_a_way_and_its_table(tmp_path, capsys):
    path = tmp_path / "steps.json"
    sizes = ["--items", "50", "--batch", "8", "--rounds", "1", "--max_length", "9"]
    steps.main(["--configurations", "SASRec fast", "paper", *sizes, "--json", str(path)])
    report = json.loads(path.read_text())
    assert [row["way"] for row in report["rows"]] == 2 * list(steps.WAYS)
    assert all(row["ms_a_step"] > 0 for row in report["rows"]) and report["ratios"]["paper: torch / torch"] == 1
    assert "x torch" in capsys.readouterr().out and torch.get_float32_matmul_precision() == "highest"
    lines = readme_tables.table("steps", tmp_path)
    assert len(lines) == 2 + 6 + 2 and lines[2].startswith("| SASRec fast, torch |") and lines[3].endswith(" x |")


def test_shares_hold_every_row_once_and_like_work(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(dispatch, "MIN_WORK", 1)
    work = torch.randint(1, 50, (300,), generator=torch.Generator().manual_seed(0)).cumsum(0).numpy()
    bounds = dispatch.split_work(work)
    assert bounds[0] == 0 and bounds[-1] == 300 and len(bounds) == 5 and bounds == sorted(bounds)
    done = [0, *(work[bound - 1] for bound in bounds[1:])]
    assert max(b - a for a, b in pairwise(done)) < work[-1] / 4 + 50
    assert dispatch.split_work(work[:0]) == [0, 0]
    monkeypatch.setattr(dispatch, "MIN_WORK", int(work[-1]))
    assert dispatch.split_work(work) == [0, 300]
