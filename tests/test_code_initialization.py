"""Code embeddings that start from the vectors of items: known answers."""

import torch

from recbole_qbert.sequence.code_initialization import content_codebook


def likeness(codebook, codes):
    rows = sum(codebook[level, code] * (code >= 0)[:, None] for level, code in enumerate(codes.unbind(1)))
    return rows @ rows.T


def test_sums_of_codes_are_as_alike_as_the_vectors():
    """Each code of level 1 stands beside each of level 2, so the vectors are sums of codes and can be rebuilt exactly."""
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(3, 5, generator=generator), torch.randn(4, 5, generator=generator)
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    vectors = first[codes[:, 0]] + second[codes[:, 1]]
    centered = vectors - vectors.mean(0)
    for width in (5, 8):  # 8 columns for vectors of 5
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
    distance = torch.cdist(codebook[0], codebook[0])
    wanted = torch.cdist(plane, plane)
    torch.testing.assert_close(distance / distance.sum(), wanted / wanted.sum(), atol=1e-3, rtol=0)


def test_items_without_a_code_take_no_part_in_it():
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [9.0, 9.0]])
    codes = torch.tensor([[0, 1], [1, 0], [-1, -1]])
    codebook, known = content_codebook(vectors, codes, size=2, width=2)
    assert known.all()
    difference = codebook[0, 0] - codebook[0, 1]
    assert difference.norm() > 0
    torch.testing.assert_close(codebook[1], torch.zeros(2, 2), atol=1e-6, rtol=0)  # nothing is left for level 2
