"""Code embeddings that start from the vectors of items: known answers."""

import torch
from torch.nn import functional as F

from recbole_qbert.sequence.code_initialization import content_codebook


def likeness(codebook, codes):
    rows = sum(codebook[level, code] * (code >= 0)[:, None] for level, code in enumerate(codes.unbind(1)))
    return rows @ rows.T


def test_sums_of_codes_are_as_alike_as_the_vectors():
    """Each code of level 1 stands beside each of level 2, so vectors of one length are sums of codes and rebuilt exactly."""
    angle = 2 * torch.pi * torch.arange(3) / 3
    first = torch.stack([angle.cos(), angle.sin(), *torch.zeros(2, 3)], 1)
    second = torch.eye(4)[[2, 3, 2, 3]] * torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None]
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    centered = first[codes[:, 0]] + second[codes[:, 1]]
    vectors = centered + torch.tensor([3.0, -1.0, 0.5, 2.0])
    for width in (4, 8):  # 8 columns for vectors of 4
        codebook, known = content_codebook(vectors, codes, size=4, width=width)
        assert codebook.shape == (2, 4, width)
        assert known.tolist() == [[True, True, True, False], [True] * 4]
        wanted = centered @ centered.T / centered.square().sum() * len(codes) * width
        torch.testing.assert_close(likeness(codebook, codes), wanted)


def test_narrow_embeddings_keep_the_principal_axes():
    generator = torch.Generator().manual_seed(4)
    plane = torch.randn(6, 2, generator=generator)
    vectors = torch.cat([plane, 0.01 * torch.randn(6, 3, generator=generator)], 1)
    codes = torch.arange(6)[:, None]
    codebook, _ = content_codebook(vectors, codes, size=6, width=2)
    direction = F.normalize(plane - plane.mean(0), dim=1)
    torch.testing.assert_close(likeness(codebook, codes), 2 * direction @ direction.T, atol=0.02, rtol=0)


def test_items_without_a_code_take_no_part_in_it():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [9.0, 9.0]])
    codes = torch.tensor([[0, 1], [1, 0], [-1, -1]])
    codebook, known = content_codebook(vectors, codes, size=2, width=2)
    assert known.all()
    difference = codebook[0, 0] - codebook[0, 1]
    assert difference.norm() > 0
    torch.testing.assert_close(codebook[1], torch.zeros(2, 2), atol=1e-6, rtol=0)  # nothing is left for level 2
