"""The patches of an image under a filter, against their definition entry by entry."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_ntt.ntk.layer_rules.patches import Geometry, patches

CASES = {
    # spatial sizes, filter, strides, dilations, padding, groups
    "valid": ((5, 6), (3, 2), (1, 1), (1, 1), "valid", 1),
    "stride": ((9, 6), (3, 3), (2, 2), (1, 1), "same", 1),
    "stride, odd and even": ((8, 7), (3, 2), (2, 3), (1, 1), "valid", 2),
    "stride longer than the filter": ((8, 9), (1, 2), (2, 4), (1, 1), "valid", 1),
    "stride longer than the filter, padded": ((5, 7), (1, 1), (3, 2), (1, 1), "same", 1),
    "rows that no filter reads": ((11, 10), (2, 2), (4, 3), (1, 1), "valid", 1),
    "stride and dilation": ((9, 11), (3, 2), (2, 3), (2, 4), "same", 2),
    "dilation": ((7, 8), (3, 2), (1, 1), (2, 3), "same", 1),
    "sequence": ((7,), (3,), (2,), (1,), "same", 2),
    "causal": ((6,), (3,), (1,), (2,), "causal", 1),
    "causal with stride": ((7,), (3,), (2,), (1,), "causal", 1),
    "volume": ((5, 4, 6), (2, 3, 1), (2, 1, 3), (1, 1, 1), "valid", 1),
}


def _by_definition(x, kernel_size, strides, dilations, padding, groups, ones):
    """Read ``x[position * stride + entry * dilation]``, zero outside the image."""
    starts, sizes = [], []
    for n, k, s, d in zip(x.shape[1:-1], kernel_size, strides, dilations, strict=True):
        reach = d * (k - 1) + 1
        if padding == "same":
            sizes.append(int(np.ceil(n / s)))
            starts.append(-(max((sizes[-1] - 1) * s + reach - n, 0) // 2))
        else:
            starts.append(1 - reach if padding == "causal" else 0)
            sizes.append((n - starts[-1] - reach) // s + 1)
    channels = x.shape[-1] // groups
    rows = []
    for position in np.ndindex(*sizes):
        row = []
        for group in range(groups):
            for entry in np.ndindex(*kernel_size):
                at = [
                    b + p * s + e * d
                    for b, p, s, e, d in zip(
                        starts, position, strides, entry, dilations, strict=True
                    )
                ]
                inside = all(0 <= i < n for i, n in zip(at, x.shape[1:-1], strict=True))
                own = slice(group * channels, (group + 1) * channels)
                row.append(x[(slice(None), *at, own)] if inside else np.zeros([len(x), channels]))
            row += [np.ones([len(x), 1])] * ones
        rows.append(np.concatenate(row, axis=-1))
    return np.stack(rows, axis=1)


@pytest.mark.parametrize(("ones", "open_sizes"), [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.few(8)
def test_patches_and_their_gradient(case, ones, open_sizes):
    spatial, *numbers, padding, groups = CASES[case]
    geometry = Geometry(*numbers, padding, "channels_last")
    x = tf.constant(np.random.default_rng(0).normal(size=(2, *spatial, 2 * groups)))

    def of(x):
        return patches(x, geometry, groups=groups, ones=ones)

    if open_sizes:
        of = tf.function(
            of, input_signature=[tf.TensorSpec([None] * (x.shape.rank - 1) + x.shape[-1:], x.dtype)]
        )
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = of(x)
    expected = _by_definition(x.numpy(), *numbers, padding, groups, ones)
    np.testing.assert_array_equal(found, expected)
    # The patches are linear in x, so their gradient is their transpose: <u, P x> = <P^T u, x>.
    weights = np.random.default_rng(1).normal(size=expected.shape)
    by_x = tape.gradient(found, x, weights)
    constant = np.sum(weights * _by_definition(0 * x.numpy(), *numbers, padding, groups, ones))
    np.testing.assert_allclose(
        np.sum(by_x * x.numpy()), np.sum(weights * expected) - constant, rtol=1e-12
    )
