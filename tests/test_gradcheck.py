"""The gradient checker: it passes right gradients, refuses kinks, and describes what is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.gradcheck import GradientError, away_from_kinks, diagnose, gradcheck
from minires.tensor import Tensor


def draw(*shape, seed=1):
    return away_from_kinks(np.random.default_rng(seed), shape)


# ---- right gradients pass


@pytest.mark.parametrize("seed", range(5))
def test_right_gradients_pass_whatever_the_upstream_gradient(seed):
    assert gradcheck(lambda a, b: (a @ b).exp() * a.sum(), [draw(3, 4), draw(4, 2)], seed=seed) is True


def test_scalars_empty_arrays_and_constants_pass():
    constant = Tensor(draw(3))
    assert gradcheck(lambda x: x * x + constant, [draw()])
    assert gradcheck(lambda x: x * 2.0, [np.zeros((0, 3))])


def test_outputs_that_are_views_of_an_input_pass():
    for fn in (lambda x: x.T, lambda x: x.reshape(-1), lambda x: x[::2]):
        assert gradcheck(fn, [draw(3, 4)])


def test_an_input_that_plays_no_part_passes():
    assert gradcheck(lambda x, y: x * 2.0, [draw(3), draw(2)])


def test_lists_float32_and_tensors_are_taken_and_left_alone():
    array, tensor = draw(3).astype(np.float32), Tensor(draw(3))
    before = array.copy(), tensor.data.copy()
    assert gradcheck(lambda x, y, z: x * y * z, [array, tensor, [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(array, before[0])
    np.testing.assert_array_equal(tensor.data, before[1])
    assert tensor.grad is None


@pytest.mark.parametrize(
    "fn, x",
    [
        (lambda x: 1 / x, [0.05, -0.1, 3.0]),
        (lambda x: x.log(), [0.01, 1.0]),
        (lambda x: (x * 5.0).exp(), [2.0, -2.0]),
        (lambda x: x * x, [0.0, 0.0]),
        (lambda x: x**4, [0.0, 1e-3]),
    ],
)
def test_strong_curvature_is_no_kink(fn, x):
    assert gradcheck(fn, [np.array(x)])


# ---- kinks and ties


def relu(x):
    mask = x.data > 0
    return Tensor.from_op(x.data * mask, (x,), lambda grad: (grad * mask,), "relu")


def test_a_kink_is_named_and_not_called_a_wrong_gradient():
    with pytest.raises(ValueError, match=r"relu: x\[1, 0\] = 0 is at a kink or a tie.*away_from_kinks"):
        gradcheck(relu, [np.array([[1.0, -2.0], [0.0, 3.0]])])


def test_a_kink_within_one_step_is_found():
    with pytest.raises(ValueError, match="kink"):
        gradcheck(relu, [np.array([1.0, 4e-7])])


def test_a_tie_is_refused_even_where_both_slopes_average_to_the_gradient():
    with pytest.raises(ValueError, match=r"x\[1\] = 2 is at a kink or a tie"):
        gradcheck(lambda x: x.max(), [np.array([1.0, 2.0, 2.0])])


def test_a_tie_below_the_maximum_does_no_harm():
    assert gradcheck(lambda x: x.max(), [np.array([1.0, 1.0, 2.0])])


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.lists(st.integers(0, 5), max_size=4).map(tuple))
def test_away_from_kinks_keeps_its_distances(seed, shape):
    x = away_from_kinks(np.random.default_rng(seed), shape)
    assert x.shape == shape and x.dtype == np.float64
    magnitudes = np.sort(np.abs(x).ravel())
    if x.size:
        assert magnitudes[0] >= 0.75 * 2 / x.size
        assert np.all(np.diff(magnitudes) >= 0.499 * 2 / x.size)
        assert magnitudes[-1] <= 2 * (1 + 0.25 / x.size)


# ---- the message


def wrong_at(*index):
    """3 x, with one wrong entry in its gradient."""

    def triple(x, y):
        def backward(grad):
            dx = 3 * grad
            dx[index] = 100.0
            return dx, grad

        return Tensor.from_op(3 * x.data + y.data, (x, y), backward, "node")

    return triple


def test_the_message_names_everything():
    upstream = np.random.default_rng(7).standard_normal((4, 5))
    with pytest.raises(GradientError) as caught:
        gradcheck(wrong_at(2, 3), [draw(4, 5), draw(4, 5)], seed=7)
    headline, worst, count = str(caught.value).splitlines()
    assert headline == "triple: wrong gradient for x (input 0): no known pattern"
    assert worst.startswith("  worst at [2, 3]: backward gives 100, finite differences give ")
    assert float(worst.rsplit(" ", 1)[1]) == pytest.approx(3 * upstream[2, 3], rel=1e-6)
    assert count == "  1 of 20 entries are wrong"


def test_a_lambda_goes_by_its_graph_and_star_arguments_by_their_number():
    with pytest.raises(GradientError, match=r"^node: wrong gradient for input 0 \(input 0\)"):
        gradcheck(lambda *args: wrong_at(0)(*args), [draw(4), draw(4)])


def test_every_wrong_argument_is_named_and_only_those():
    def mul(a, b, c):
        def backward(grad):
            return grad * b.data * c.data * 2, grad * a.data * c.data, grad * 0

        return Tensor.from_op(a.data * b.data * c.data, (a, b, c), backward, "mul")

    with pytest.raises(GradientError) as caught:
        gradcheck(mul, [draw(3), draw(3, seed=2), draw(3, seed=3)])
    message = str(caught.value)
    assert "wrong gradient for a (input 0): constant ratio 2:" in message
    assert "wrong gradient for c (input 2): all zero" in message
    assert "for b" not in message


def test_tolerances_are_honoured():
    def slightly_off(x):
        return Tensor.from_op(x.data * 3, (x,), lambda grad: (3.001 * grad,), "slightly_off")

    with pytest.raises(GradientError, match=r"constant ratio 1\.00033"):
        gradcheck(slightly_off, [draw(4)])
    assert gradcheck(slightly_off, [draw(4)], rtol=1e-2)


def test_fn_must_return_a_tensor():
    with pytest.raises(TypeError, match="fn must return one Tensor, got ndarray"):
        gradcheck(lambda x: x.data, [draw(3)])


# ---- diagnose: the pattern, from the two arrays

SQUARE = np.random.default_rng(0).standard_normal((2, 4, 4, 3))


def changed(x, index, value):
    x = x.copy()
    x[index] = value
    return x


def padded_and_cropped_at_the_corner(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, :4, :4]


@pytest.mark.parametrize(
    "got, words",
    [
        (SQUARE, ""),
        (SQUARE + 1e-9, ""),
        (None, "none arrived (None)"),
        (SQUARE * 0, "all zero"),
        (SQUARE * 0.5, "constant ratio 0.5:"),
        (-SQUARE, "constant ratio -1:"),
        (SQUARE.transpose(0, 2, 1, 3), "transposed: its axes are in the order (0, 2, 1, 3)"),
        (SQUARE.transpose(3, 0, 1, 2), "transposed: its axes are in the order (3, 0, 1, 2)"),
        (SQUARE[:1], "wrong shape: (1, 4, 4, 3), expected (2, 4, 4, 3)"),
        (SQUARE.astype(np.float32), "wrong dtype: float32, expected float64"),
        (changed(SQUARE, (0, 1, 2, 0), np.nan), "NaN or infinity in 1 of 96 entries"),
        (changed(SQUARE, (0, 1), np.inf), "NaN or infinity in 12 of 96 entries"),
        (SQUARE[:, ::-1, ::-1], "reversed along axes (1, 2)"),
        (SQUARE[..., ::-1], "reversed along axes (3,)"),
        (padded_and_cropped_at_the_corner(SQUARE), "shifted by 1 along axes (1, 2)"),
        (np.roll(SQUARE, -1, 1), "shifted by -1 along axes (1,)"),
        (SQUARE + np.array([1.0, 0.0, -2.0]), "off by one constant per channel"),
        (SQUARE * np.array([1.0, 0.5, -2.0]), "one factor too much or missing per channel"),
        (changed(SQUARE, (slice(None), 0), 7.0), "only the borders are wrong"),
        (changed(SQUARE, (slice(None), slice(None), -1), 7.0), "only the borders are wrong"),
        (changed(SQUARE, (0, 1, 1), 0.0), "zero where it should not be, right elsewhere"),
        (changed(SQUARE, (0, 1, 1), 7.0), "no known pattern"),
        (SQUARE.reshape(2, 4, 3, 4).swapaxes(2, 3), "the right numbers in another order"),
        (changed(SQUARE, 1, 7.0), "right for the first entry of axis 0, wrong after it"),
        (changed(SQUARE, (1, 1, 2), 7.0), "no known pattern"),
        (changed(SQUARE, 0, 7.0), "no known pattern"),
        (
            changed(SQUARE, (1, 1, 2), SQUARE[1, 1, 2] + 2e-3),
            "nearly right: off by 0.0009 of the largest entry, or less",
        ),
    ],
)
def test_diagnose(got, words):
    said = diagnose(got, SQUARE)
    assert said.startswith(words) and bool(said) == bool(words)


@pytest.mark.parametrize(
    "got, wanted, words",
    [
        (0.25, 0.5, "constant ratio 0.5:"),
        (-0.5, 0.5, "constant ratio -1:"),
        (64.0, 0.5, "constant ratio 128:"),
        (0.7, 0.5, "another number"),
        (0.7, 0.0, "another number"),
        (700.0, 0.5, "another number"),  # 1,400 times as much is no forgotten count
        (0.501, 0.5, "nearly right: off by 0.002 of"),
    ],
)
def test_two_single_numbers_have_a_ratio_only_where_it_says_something(got, wanted, words):
    for shape in ((), (1,), (1, 1)):
        assert diagnose(np.full(shape, got), np.full(shape, wanted)).startswith(words)


def test_short_vectors_have_no_borders_and_are_not_shifted():
    assert diagnose(np.array([9.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])).startswith("no known pattern")
    assert diagnose(np.array([0.2, 0.5]), np.array([0.5, 0.3])).startswith("no known pattern")


def test_diagnose_where_nothing_should_have_arrived():
    masked = SQUARE * (SQUARE > 0)
    assert diagnose(SQUARE, masked) == "not zero where it should be, right elsewhere"
    assert diagnose(None, SQUARE * 0) == ""


def test_diagnose_with_the_upstream_gradient():
    upstream = np.random.default_rng(5).standard_normal(SQUARE.shape)
    assert diagnose(upstream, SQUARE, upstream) == "the upstream gradient came through unchanged"
    assert diagnose(SQUARE - upstream, SQUARE, upstream).startswith("the upstream gradient is missing from the sum")
    assert diagnose(SQUARE, SQUARE * upstream, upstream) == "the upstream gradient is missing as a factor"


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    other=st.lists(st.integers(0, 4), max_size=4).map(tuple),
)
def test_diagnose_has_words_for_any_two_arrays(seed, shape, other):
    rng = np.random.default_rng(seed)
    wanted, got = rng.standard_normal(shape), rng.standard_normal(other)
    assert diagnose(wanted.copy(), wanted) == ""
    assert bool(diagnose(got, wanted)) == (shape != other or wanted.size > 0)
