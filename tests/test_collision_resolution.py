"""Collision resolution: unique IDs, no item moved without need, the same for any order of rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_qbert.quantization.collision_resolution import reallocate


@st.composite
def catalogs(draw, full: bool = False):
    """``(codes, latents, codebooks, items)``; collisions are frequent, latents sometimes equal."""
    levels, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    most = min(size**levels, 40)
    count = size**levels if full else draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    few = draw(st.integers(1, size))  # codes in use: 1 puts all items on one ID
    codes = random.integers(0, few, (count, levels)).astype(draw(st.sampled_from([np.int16, np.int64])))
    latents = random.normal(size=(count, 3)).astype(np.float32)
    if draw(st.booleans()):
        latents[:] = latents[random.integers(0, count, count)]
    items = [f"i{n}" for n in random.permutation(count)]
    return codes, latents, random.normal(size=(levels, size, 3)).astype(np.float32), items


def groups(codes):
    """ID -> rows that have it."""
    found = {}
    for row, code in enumerate(map(tuple, codes.tolist())):
        found.setdefault(code, []).append(row)
    return found


def distances(latent, books, path):
    residual = latent.astype(np.float64)
    for level, code in enumerate(path):
        residual = residual - books[level, code].astype(np.float64)
    return ((residual - books[len(path)].astype(np.float64)) ** 2).sum(1)


def brute_force(codes, latents, books, items):
    """The rule of the docstring by enumeration of all IDs."""
    levels, size = books.shape[:2]
    result = [tuple(code) for code in codes.tolist()]
    taken, waiting = set(result), []
    for code, rows in groups(codes).items():
        last = {row: distances(latents[row], books, code[:-1]) for row in rows}
        rows = sorted(rows, key=lambda row: (last[row][code[-1]], items[row]))
        waiting += [(last[row].min(), items[row], row) for row in rows[1:]]
    for _, _, row in sorted(waiting):
        free = [code for code in product(range(size), repeat=levels) if code not in taken]
        common = [next((k for k in range(levels) if code[k] != result[row][k]), levels) for code in free]
        free = [code for code, kept in zip(free, common, strict=True) if kept == max(common)]
        result[row] = min(free, key=lambda code: [distances(latents[row], books, code[:k])[code[k]] for k in range(levels)])
        taken.add(result[row])
    return result


@pytest.mark.pipeline
@settings(max_examples=200, deadline=None)
@given(catalogs())
def test_ids_are_unique_and_only_what_must_move_moves(case):
    codes, latents, books, items = case
    result = reallocate(codes, latents, books, items)
    assert result.shape == codes.shape
    assert result.dtype == codes.dtype
    assert result.min() >= 0
    assert result.max() < books.shape[1]
    assert len(groups(result)) == len(codes)
    for rows in groups(codes).values():
        assert sum(np.array_equal(result[row], codes[row]) for row in rows) == 1  # the one that was alone, or keeps it


@settings(max_examples=100, deadline=None)
@given(catalogs(), st.integers(0, 10**6))
def test_the_order_of_rows_does_not_matter(case, seed):
    codes, latents, books, items = case
    order = np.random.default_rng(seed).permutation(len(codes))
    shuffled = reallocate(codes[order], latents[order], books, [items[row] for row in order])
    assert np.array_equal(shuffled, reallocate(codes, latents, books, items)[order])


@settings(max_examples=100, deadline=None)
@given(catalogs())
def test_a_second_pass_changes_nothing(case):
    codes, latents, books, items = case
    once = reallocate(codes, latents, books, items)
    assert np.array_equal(reallocate(once, latents, books, items), once)


@pytest.mark.pipeline
@settings(max_examples=150, deadline=None)
@given(catalogs())
def test_each_item_takes_the_nearest_free_id_of_its_longest_prefix_with_room(case):
    assert list(map(tuple, reallocate(*case).tolist())) == brute_force(*case)


@settings(max_examples=40, deadline=None)
@given(catalogs(full=True))
def test_a_catalog_that_needs_every_id_gets_every_id(case):
    codes, latents, books, items = case
    levels, size = books.shape[:2]
    assert set(map(tuple, reallocate(codes, latents, books, items).tolist())) == set(product(range(size), repeat=levels))


@pytest.mark.parametrize("free", [0, 1, 3])
def test_items_alike_in_every_way_fill_a_nearly_full_space(free):
    count = 4**3 - free
    codes, latents = np.zeros((count, 3), dtype=np.int64), np.zeros((count, 2))
    books = np.random.default_rng(0).normal(size=(3, 4, 2))
    items = [f"i{n:03}" for n in range(count)]
    result = reallocate(codes, latents, books, items)
    assert len(groups(result)) == count
    assert result[0].tolist() == [0, 0, 0]  # equal distances: the first token keeps the ID
    assert np.array_equal(result[::-1], reallocate(codes, latents, books, items[::-1]))


@pytest.mark.parametrize("count", [17, 40])
def test_more_items_than_ids_is_a_clear_error(count):
    codes, latents, books = np.zeros((count, 2), dtype=int), np.zeros((count, 1)), np.zeros((2, 4, 1))
    with pytest.raises(ValueError, match=rf"{count}.*2.*4.*16.*rq_levels.*rq_codes"):
        reallocate(codes, latents, books, [str(n) for n in range(count)])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"3.*2.*3.*2"):
        reallocate(np.zeros((3, 2), dtype=int), np.zeros((2, 1)), np.zeros((2, 4, 1)), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"1 codebooks.*2 levels"):
        reallocate(np.zeros((1, 2), dtype=int), np.zeros((1, 1)), np.zeros((1, 4, 1)), ["a"])


def test_a_case_by_hand():
    """Codes at 0 to 3 on a line. 'near' keeps 0; 'far' would take 1, but 'alone' sits there: it takes 2."""
    books = np.arange(4.0).reshape(1, 4, 1)
    latents = np.array([[0.3], [0.1], [1.2]])
    result = reallocate(np.array([[0], [0], [1]]), latents, books, ["far", "near", "alone"])
    assert result[:, 0].tolist() == [2, 0, 1]


def test_a_full_prefix_sends_an_item_one_level_up():
    """Two codes a level, three items on (0, 0): one keeps it, one takes (0, 1), one goes under prefix 1."""
    books = np.array([[[0.0], [10.0]], [[0.0], [1.0]]])
    latents = np.array([[0.0], [0.1], [0.2]])
    result = reallocate(np.zeros((3, 2), dtype=int), latents, books, ["a", "b", "c"])
    # Under prefix 1 the residual of c is 0.2 - 10: code 0 is the nearer one.
    assert result.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_no_items_and_one_item():
    books = np.zeros((2, 3, 1))
    assert reallocate(np.zeros((0, 2), dtype=int), np.zeros((0, 1)), books, []).shape == (0, 2)
    assert reallocate(np.array([[2, 1]]), np.zeros((1, 1)), books, ["a"]).tolist() == [[2, 1]]


def test_what_came_in_is_left_as_it_was():
    codes, latents = np.zeros((4, 2), dtype=int), np.random.default_rng(0).normal(size=(4, 2))
    books = np.random.default_rng(1).normal(size=(2, 3, 2))
    kept = codes.copy(), latents.copy(), books.copy()
    reallocate(codes, latents, books, list("abcd"))
    assert all(np.array_equal(a, b) for a, b in zip(kept, (codes, latents, books), strict=True))
