"""Sparse encodings: examples by hand, the runtime's own walk as oracle, exact costs."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from helpers.litert_graphs import sparse_array
from hypothesis import strategies as st

from keras_ntt.litert.format import sizes, storage
from keras_ntt.litert.format.cost import Cost, layouts
from keras_ntt.litert.format.encoding import (
    ROWS,
    Layout,
    Level,
    Sparse,
    decode,
    encode,
    index_type,
)

pytestmark = pytest.mark.oldest


def walk(sparse):
    """Unpack as the format's definition says: entry by entry, level by level."""
    rank, blocks = len(sparse.shape), sparse.layout.blocks
    cut = [axis for axis, block in enumerate(blocks) if block > 1]
    result = np.zeros(sparse.shape, sparse.values.dtype)
    values = iter(sparse.values)

    def visit(depth, node, coordinates):
        if depth == len(sparse.levels):
            place = [0] * rank
            for axis, c in zip(sparse.layout.order, coordinates, strict=False):
                place[axis] = int(c)
            for axis, c in zip(cut, coordinates[rank:], strict=True):
                place[axis] = place[axis] * blocks[axis] + int(c)
            result[tuple(place)] = next(values)
            return
        level = sparse.levels[depth]
        if level.segments is None:
            for i in range(level.size):
                visit(depth + 1, node * level.size + i, [*coordinates, i])
        else:
            for i in range(level.segments[node], level.segments[node + 1]):
                visit(depth + 1, i, [*coordinates, level.indices[i]])

    visit(0, 0, [])
    assert next(values, None) is None
    return result


def stored_bytes(sparse):
    levels = [a for level in sparse.levels for a in (level.segments, level.indices)]
    return sparse.values.nbytes + sum(a.nbytes for a in levels if a is not None)


def test_compressed_rows_by_hand():
    array = np.array([[0, 7, 0], [0, 0, 0], [5, 0, 6]], "float32")
    sparse = encode(array, ROWS)
    assert sparse.levels[0] == Level(3)
    np.testing.assert_array_equal(sparse.levels[1].segments, [0, 1, 1, 3])
    np.testing.assert_array_equal(sparse.levels[1].indices, [1, 0, 2])
    np.testing.assert_array_equal(sparse.values, [7, 5, 6])
    assert sparse.levels[1].segments.dtype == np.uint8
    assert Cost(array).of(ROWS, 4) == 3 * 4 + 4 + 3


def test_columns_and_blocks_by_hand():
    array = np.array([[1, 2, 0, 0], [0, 3, 0, 0]], "float32")
    columns = encode(array, Layout((1, 0), (True, False), (1, 1)))
    np.testing.assert_array_equal(columns.levels[0].indices, [0, 1])
    np.testing.assert_array_equal(columns.values, [1, 0, 2, 3])
    blocks = encode(array, Layout((0, 1), (True, True), (2, 2)))
    assert [level.size for level in blocks.levels] == [1, 2, 2, 2]
    np.testing.assert_array_equal(blocks.levels[1].indices, [0])
    np.testing.assert_array_equal(blocks.values, [1, 2, 0, 3])
    assert Cost(array).of(blocks.layout, 4) == 4 * 4 + (2 + 1) + (2 + 1)


@st.composite
def arrays(draw):
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 9 if rank > 2 else 20)) for _ in range(rank))
    sparsity = draw(st.sampled_from([0.0, 0.3, 0.7, 0.9, 0.97, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    array = sparse_array(rng, shape, sparsity)
    if draw(st.booleans()):
        array[draw(st.integers(0, shape[0] - 1))] = 0
    return array


@st.composite
def encoded(draw):
    array = draw(arrays())
    options = list(layouts(array.shape))
    hypothesis.assume(options)
    return array, options[draw(st.integers(0, len(options) - 1))]


@hypothesis.given(encoded())
@hypothesis.settings(max_examples=60)
def test_every_layout_comes_back_and_costs_what_is_counted(pair):
    array, layout = pair
    sparse = encode(array, layout)
    np.testing.assert_array_equal(walk(sparse), array)
    np.testing.assert_array_equal(decode(sparse), array)
    for itemsize, dtype in ((4, "float32"), (2, "float16"), (1, "int8")):
        # The same pattern of zeros, whatever the values are.
        pattern = (array != 0).astype(dtype)
        assert Cost(array).of(layout, itemsize) == stored_bytes(encode(pattern, layout))


@hypothesis.given(arrays())
def test_the_best_layout_is_the_cheapest_of_all(array):
    cost = Cost(array)
    layout, size = cost.best(4)
    assert size == cost.of(layout, 4) == min(cost.of(other, 4) for other in layouts(array.shape))
    np.testing.assert_array_equal(decode(encode(array, layout)), array)


@pytest.mark.parametrize(("size", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_indices_are_as_narrow_as_the_largest_one_allows(size, width):
    array = np.zeros((2, size), "float32")
    array[0, size - 1] = array[1, 0] = 1
    sparse = encode(array, ROWS)
    assert sparse.levels[1].indices.itemsize == width
    assert sparse.levels[1].segments.itemsize == 1
    np.testing.assert_array_equal(decode(sparse), array)


def test_segments_are_as_narrow_as_the_count_of_non_zeros_allows():
    for count, width in ((255, 1), (256, 2), (65535, 2), (65536, 4)):
        array = np.zeros((300, 300), "float32")
        array.flat[:count] = 1
        assert encode(array, ROWS).levels[1].segments.itemsize == width
        assert index_type(count).itemsize == width


def test_an_array_of_zeros_stores_one_of_them():
    sparse = encode(np.zeros((3, 4), "float32"), ROWS)
    assert len(sparse.values) == 1
    assert not decode(sparse).any()


def test_blocks_and_whole_filters_are_found():
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((16, 8)) < 0.1, np.ones((4, 4))).astype("float32")
    assert Cost(blocks).best(4)[0].blocks == (4, 4)
    filters = sparse_array(rng, (8, 3, 3, 8), 0)
    filters *= (rng.random((8, 1, 1, 8)) < 0.2).astype("float32")
    layout, size = Cost(filters).best(4)
    kept = int(np.count_nonzero(filters.any(axis=(1, 2))))
    assert size <= kept * 9 * 4 + kept + 8 + 1  # one index a filter, not nine
    np.testing.assert_array_equal(decode(encode(filters, layout)), filters)


BROKEN = {
    "a shape of terabytes": {"shape": (3, 2**40)},
    "order": {"layout": Layout((0, 0), (False, True), (1, 1))},
    "segments too long": {"segments": np.array([0, 1, 1, 2, 2], "uint8")},
    "segments fall": {"segments": np.array([0, 2, 1, 2], "uint8")},
    "segments beyond the indices": {"segments": np.array([0, 1, 1, 3], "uint8")},
    "index outside": {"indices": np.array([1, 9], "uint8")},
    "values missing": {"values": np.ones(1, "float32")},
    "level missing": {"levels": (Level(3),)},
    "blocks that do not divide": {"layout": Layout((0, 1), (False, True), (1, 2))},
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_do_not_fit_together_are_refused(name):
    good = encode(np.array([[0, 7, 0], [0, 0, 0], [5, 0, 0]], "float32"), ROWS)
    change = dict(BROKEN[name])
    level = good.levels[1]
    level = Level(3, change.pop("segments", level.segments), change.pop("indices", level.indices))
    parts = {
        "shape": good.shape,
        "layout": good.layout,
        "levels": (good.levels[0], level),
        "values": good.values,
        **change,
    }
    with pytest.raises(ValueError):  # noqa: PT011 - the words are added by whoever reads a file
        decode(Sparse(**parts))


# --- quantization and limits -----------------------------------------------------------------


@hypothesis.given(arrays(), st.floats(1e-30, 1e30))
def test_int8_rounds_by_half_a_step_and_keeps_zeros(array, factor):
    array = (array * np.float32(factor)).astype("float32")
    hypothesis.assume(np.isfinite(array).all())
    rounded, scales = storage.quantize(array, 0)
    back = storage.dequantize(rounded, scales, 0)
    steps = scales.reshape(-1, *[1] * (array.ndim - 1))
    assert (np.abs(back - array) <= steps * 0.5001).all()
    assert not rounded[array == 0].any()
    assert np.abs(rounded.astype(int)).max() <= 127
    largest = np.abs(array).reshape(len(array), -1).max(1)
    exact = np.maximum(largest / np.float32(127), np.finfo("float32").tiny)[largest > 0]
    assert (scales[largest > 0] >= exact).all()
    assert (scales[largest > 0] <= exact * 1.0079).all()
    assert not (scales.view(np.uint32) & 0xFFFF).any()  # so that they compress


def test_the_entropy_limit_of_a_mask_is_the_number_of_masks():
    # All masks of 4 ones in 16: log2(1820) = 10.83 bits; n H(1/4) = 12.98 is its upper bound.
    array = np.zeros(16, "float32")
    array[:4] = 1.5
    bits = sizes.limit(array) * 8 - 4 * 32
    assert np.log2(1820) <= bits == pytest.approx(16 * (0.25 * 2 + 0.75 * np.log2(4 / 3)))
    same = np.where(array != 0, 3, 0).astype("int8")
    assert sizes.limit(same) * 8 == pytest.approx(bits)  # one value only: no bits for it
    assert sizes.limit(np.zeros(5, "float32")) == 0
