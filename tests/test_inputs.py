"""Degenerate and hostile inputs: each is solved, or refused with a message that names the argument."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers import reversed_view, solve_tightly
from instances import layer

import nettrim as nt

# most tests here give a linear layer's outputs, which is warned of and has a test of its own
pytestmark = pytest.mark.filterwarnings("error", "ignore:Y has negative entries")


@pytest.fixture(scope="module")
def data():
    """(X, Z) of a random layer in float64: 12 inputs, 4 neurons, 50 samples."""
    return layer(np.random.default_rng(5), 12, 4, 50)


def check(problem: nt.Problem, **settings) -> nt.Solution:
    """Solved, by a certificate recomputed here; to a gap of 1e-6 in float64."""
    settings = {"gap_tol": 1e-6 if problem.dtype == np.float64 else 1e-3, "feas_tol": 1e-4} | settings
    solution = nt.Solver(problem, **settings).solve()
    assert solution.status == nt.Status.SOLVED, solution.message
    assert solution.W.shape == (problem.N, problem.M)
    assert solution.W.dtype == problem.dtype
    assert nt.certify(problem, solution.W, solution.dual).holds(settings["gap_tol"], settings["feas_tol"])
    return solution


# degenerate data


@pytest.mark.parametrize("omega", ["active", "linear"])
def test_outputs_of_zero(data, omega, dtype):
    X = data[0].astype(dtype)
    solution = check(nt.Problem(X, np.zeros((4, 50), dtype), 0.1, omega=omega))
    assert not solution.W.any()
    assert solution.iterations == 0
    assert solution.certificate.gap == 0


def test_outputs_that_are_never_active(data, dtype):
    """Omega is empty: W = 0 gives outputs of 0, below the bound of 0."""
    assert not check(nt.Problem(data[0].astype(dtype), -np.abs(data[1]).astype(dtype), 0.1)).W.any()


def test_inputs_and_outputs_of_zero(dtype):
    assert not check(nt.Problem(np.zeros((3, 5), dtype), np.zeros((2, 5), dtype), 0.1)).W.any()


@pytest.mark.parametrize("neuronwise", [False, True], ids=["common", "neuronwise"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_a_dead_neuron(data, neuronwise, epsilon, dtype):
    X, Y = data[0].astype(dtype), np.maximum(data[1], 0).astype(dtype)
    Y[2] = 0
    W = check(nt.Problem(X, Y, epsilon, neuronwise=neuronwise), feas_tol=1e-4 if epsilon else 1e-3).W
    assert not W[:, 2].any()
    assert W.any()
    if epsilon == 0:
        np.testing.assert_array_equal(W.any(axis=0), Y.any(axis=1))


ROWS = {
    "one repeated": lambda X: np.vstack([X[:11], X[:1]]),
    "all equal": lambda X: np.repeat(X[:1], 12, axis=0),
    "all constant": lambda X: np.ones_like(X),
    "many constant": lambda X: np.vstack([np.full((5, 50), 2.0, X.dtype), X[5:]]),
    "opposite": lambda X: np.vstack([X[:6], -X[:6]]),
    "zero": lambda X: np.vstack([np.zeros((5, 50), X.dtype), X[5:]]),
}


@pytest.mark.parametrize("omega", ["active", "linear"])
@pytest.mark.parametrize("rows", ROWS)
def test_dependent_rows(data, rows, omega, dtype):
    X = ROWS[rows](data[0].astype(dtype))
    Z = np.random.default_rng(1).standard_normal((4, 12)).astype(dtype) @ X
    solution = check(nt.Problem(X, Z if omega == "linear" else np.maximum(Z, 0), 0.1, omega=omega))
    if rows == "zero":
        assert not solution.W[:5].any()


@pytest.mark.parametrize("omega", ["active", "linear"])
@pytest.mark.parametrize("P", [1, 2, 5])
def test_fewer_samples_than_inputs(data, P, omega, dtype):
    X, Z = data[0][:, :P].astype(dtype), data[1][:, :P].astype(dtype)
    check(nt.Problem(X, Z if omega == "linear" else np.maximum(Z, 0), 0.1, omega=omega))


def test_one_of_everything(dtype):
    """min |w| subject to |2 w - 6| <= 0.6."""
    solution = check(nt.Problem(np.full((1, 1), 2, dtype), np.full((1, 1), 6, dtype), 0.1))
    assert solution.W[0, 0] == pytest.approx(2.7, rel=1e-3)


@pytest.mark.parametrize("V", [np.inf, 1e30, "array"])
def test_bounds_that_do_not_bind(data, V, backend, dtype):
    """V = inf off Omega: the half-spaces are gone."""
    X, Y = data[0].astype(dtype), np.maximum(data[1], 0).astype(dtype)
    V = np.where(Y > 0, 0, np.inf) if isinstance(V, str) else V
    solution = check(nt.Problem(X, Y, 0.1, V=V), backend=backend)
    huge = check(nt.Problem(X, Y, 0.1, V=100 * float(Y.max())), backend=backend)
    assert solution.certificate.objective == pytest.approx(huge.certificate.objective, rel=2e-3)


@pytest.mark.parametrize("C", [0.0, 1e-12, 1e12])
def test_extreme_weights(data, C, dtype):
    solution = check(nt.Problem(data[0].astype(dtype), np.maximum(data[1], 0).astype(dtype), 0.1, C=C))
    assert solution.certificate.objective == 0 if C == 0 else solution.certificate.objective > 0


def test_a_mask_of_nothing(data, dtype):
    """No ball: W = 0 where the bounds allow it, else what they force."""
    X, Z = data[0].astype(dtype), data[1].astype(dtype)
    nothing = np.zeros(Z.shape, bool)
    assert not check(nt.Problem(X, Z, epsilon_abs=0.1, omega=nothing)).W.any()
    assert check(nt.Problem(X, Z, epsilon_abs=0.1, omega=nothing, V=-1.0)).W.any()


# scales


@pytest.mark.parametrize("kind", ["relu", "linear", "bounds"])
@pytest.mark.parametrize("of_Y", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("of_X", [1e-12, 1.0, 1e12])
def test_scales(data, of_X, of_Y, kind, dtype):
    X, Z = data
    Y, Z = (Z if kind == "linear" else np.maximum(Z, 0)), of_Y * Z
    options = {"omega": "linear"} if kind == "linear" else {"V": np.minimum(Z, 0) / 2} if kind == "bounds" else {}
    scaled = check(nt.Problem((of_X * X).astype(dtype), (of_Y * Y).astype(dtype), 0.1, **options))
    if kind == "bounds":
        options["V"] = options["V"] / of_Y
    plain = check(nt.Problem(X.astype(dtype), Y.astype(dtype), 0.1, **options))
    # both are within the tolerances of the same optimum
    tolerance = 1e-3 if dtype == np.float64 else 5e-3
    assert scaled.certificate.objective * of_X / of_Y == pytest.approx(plain.certificate.objective, rel=tolerance)


@pytest.mark.parametrize("spread", [1e1, 1e3])
def test_inputs_on_different_scales(data, spread):
    """Rows of X from 1 / spread to spread."""
    X = np.geomspace(1 / spread, spread, 12)[:, None] * data[0]
    Y = np.maximum(np.random.default_rng(1).standard_normal((4, 12)) @ data[0], 0)
    check(nt.Problem(X, Y, 0.1), gap_tol=1e-3)


# layouts


def layouts(a: np.ndarray, tmp_path, name: str) -> dict[str, np.ndarray]:
    wide = np.zeros((2 * a.shape[0], 3 * a.shape[1]), a.dtype)
    wide[::2, ::3] = a
    locked = a.copy()
    locked.flags.writeable = False
    mapped = np.memmap(tmp_path / name, a.dtype, "w+", shape=a.shape)
    mapped[:] = a
    mapped.flush()
    return {
        "Fortran": np.asfortranarray(a),
        "strided": wide[::2, ::3],
        "reversed": reversed_view(a),
        "transposed": np.ascontiguousarray(a.T).T,
        "read-only": locked,
        "memory-mapped": np.memmap(tmp_path / name, a.dtype, "r", shape=a.shape),
        "big-endian": a.astype(a.dtype.newbyteorder(">")),
        "nested list": a.tolist(),
    }


LAYOUTS = [
    "Fortran",
    "strided",
    "reversed",
    "transposed",
    "read-only",
    "memory-mapped",
    "big-endian",
    "nested list",
]


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_memory(data, layout, linear, backend, tmp_path):
    """Any layout of X, Y, V, C and Omega gives the answer of the plain arrays, and none is written to."""
    X, Z = data
    Y = Z if linear else np.maximum(Z, 0)
    arrays = {"X": X, "Y": Y, "C": np.linspace(0.5, 1, 48).reshape(12, 4)}
    if not linear:
        arrays |= {"V": np.minimum(Z, 0) / 2, "omega": Y > 0}
    omega = {"omega": "linear"} if linear else {}
    given = {name: layouts(a, tmp_path, name)[layout] for name, a in arrays.items() if name != "omega"}
    if not linear:
        given["omega"] = np.asfortranarray(Y > 0) if layout != "strided" else np.repeat(Y > 0, 2, 0)[::2]
    kept = {name: np.array(a) for name, a in given.items()}
    one = solve_tightly(nt.Problem(**arrays, epsilon=0.1, **omega), backend=backend)
    other = solve_tightly(nt.Problem(**given, epsilon=0.1, **omega), backend=backend)
    np.testing.assert_allclose(one.certificate.objective, other.certificate.objective, rtol=1e-5)
    for name, a in given.items():
        np.testing.assert_array_equal(np.array(a), kept[name], err_msg=name)


def test_inputs_are_never_modified(data, backend, dtype):
    X, Y = data[0].astype(dtype), np.maximum(data[1], 0).astype(dtype)
    V, C, omega = np.minimum(data[1], 0).astype(dtype) / 2, np.ones((12, 4), dtype), Y > 0
    copies = [a.copy() for a in (X, Y, V, C, omega)]
    solver = nt.Solver(nt.Problem(X, Y, 0.1, V=V, C=C, omega=omega), backend=backend)
    solution = solver.solve()
    W, dual = solution.W.copy(), solution.dual.copy()
    solver.update(epsilon=0.3).solve()
    for before, after in zip(copies, (X, Y, V, C, omega), strict=True):
        np.testing.assert_array_equal(before, after)
    # nor is a solution that was already returned
    np.testing.assert_array_equal(W, solution.W)
    np.testing.assert_array_equal(dual, solution.dual)


def test_arrays_that_fit_are_not_copied(data):
    problem = nt.Problem(*data, 0.1)
    assert problem.X is data[0]
    assert problem.Y is data[1]


# dtypes


def test_working_dtype(data):
    X, Y = data
    f4, f8 = np.float32, np.float64
    assert nt.Problem(X.astype(f4), Y.astype(f4), 0.1).dtype == f4
    assert nt.Problem(X.astype(f4), Y, 0.1).dtype == f8
    assert nt.Problem(X, Y, 0.1, dtype=f4).dtype == f4
    assert nt.Problem(X.astype(f4), Y.astype(f4), 0.1, dtype=f8).dtype == f8


def test_float16_is_promoted(data):
    X, Y = data[0].astype(np.float16), np.maximum(data[1], 0).astype(np.float16)
    problem = nt.Problem(X, Y, 0.1)
    assert problem.dtype == np.float32
    check(problem)


@pytest.mark.parametrize("name", ["X", "Y"])
@pytest.mark.parametrize("wrong", [np.int64, np.uint8, bool, np.complex128, object, "U8", np.longdouble])
def test_dtypes_that_are_refused(data, name, wrong):
    arrays = {"X": data[0], "Y": np.maximum(data[1], 0)}
    arrays[name] = arrays[name].astype(wrong)
    with pytest.raises(TypeError, match=f"^{name} must be float32 or float64"):
        nt.Problem(**arrays, epsilon=0.1)


@pytest.mark.parametrize("name", ["V", "C"])
@pytest.mark.parametrize("wrong", [np.complex128, object, bool, "U8"])
def test_dtypes_of_bounds_and_weights_that_are_refused(data, name, wrong):
    value = np.ones((4, 50) if name == "V" else (12, 4)).astype(wrong)
    with pytest.raises(TypeError, match=f"^{name} must be real"):
        nt.Problem(*data, 0.1, **{name: value})


@pytest.mark.parametrize("wrong", [np.float16, int, complex, object])
def test_working_dtypes_that_are_refused(data, wrong):
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        nt.Problem(*data, 0.1, dtype=wrong)


def test_overflow_in_a_narrower_dtype_is_refused(data):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="X contains inf in float32"):
        nt.Problem(1e300 * data[0], data[1], 0.1, dtype=np.float32)


# values


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["X", "Y"])
def test_values_that_are_not_finite(data, name, value, dtype):
    arrays = {"X": data[0].astype(dtype), "Y": data[1].astype(dtype)}
    arrays[name][3, 7] = value
    with pytest.raises(ValueError, match=f"^{name} contains (NaN|inf)"):
        nt.Problem(**arrays, epsilon=0.1)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_bounds_that_are_not_bounds(data, value):
    V = np.zeros((4, 50))
    V[1, 1] = value
    for wrong in (V, value):
        with pytest.raises(ValueError, match="^V contains NaN or -inf"):
            nt.Problem(*data, 0.1, V=wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_weights_that_are_not_weights(data, value):
    C = np.ones((12, 4))
    C[1, 1] = value
    for wrong in (C, C[:, 1], value):
        with pytest.raises(ValueError, match="^C must be finite and at least 0"):
            nt.Problem(*data, 0.1, C=wrong)


# shapes


@pytest.mark.parametrize("name", ["X", "Y"])
def test_empty(data, name):
    arrays = {"X": data[0], "Y": data[1]}
    for empty in (arrays[name][:0], arrays[name][:, :0], np.zeros((0, 0))):
        with pytest.raises(ValueError, match=f"^{name} is empty"):
            nt.Problem(**(arrays | {name: empty}), epsilon=0.1)


@pytest.mark.parametrize("name", ["X", "Y"])
def test_not_a_matrix(data, name):
    arrays = {"X": data[0], "Y": data[1]}
    for wrong in (arrays[name][0], arrays[name][None], np.float64(1)):
        with pytest.raises(ValueError, match=f"^{name} must be a matrix"):
            nt.Problem(**(arrays | {name: wrong}), epsilon=0.1)


def test_samples_in_rows_are_recognised(data):
    with pytest.raises(ValueError, match=r"pass X\.T and Y\.T"):
        nt.Problem(data[0].T, data[1].T, 0.1)
    with pytest.raises(ValueError, match=r"X is \(12, 50\), Y is \(50, 4\)") as error:
        nt.Problem(data[0], data[1].T, 0.1)
    assert "pass X.T" not in str(error.value)


@pytest.mark.parametrize("shape", [(50, 4), (4, 49), (1, 50), (4, 1), (200,)])
def test_shapes_of_mask_and_bounds(data, shape):
    with pytest.raises(ValueError, match=r"^omega must have the shape of Y, \(4, 50\)"):
        nt.Problem(*data, 0.1, omega=np.ones(shape, bool))
    with pytest.raises(ValueError, match=r"^V must be a number or have the shape of Y, \(4, 50\)"):
        nt.Problem(*data, 0.1, V=np.ones(shape))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (4, 12), (12, 1, 1), (13,)])
def test_shapes_of_weights(data, shape):
    with pytest.raises(ValueError, match=r"^C must be a number, \(12,\), \(12, 1\) or \(12, 4\)"):
        nt.Problem(*data, 0.1, C=np.ones(shape))


@pytest.mark.parametrize("wrong", [np.ones((4, 50)), np.ones((4, 50), int), 1.0, None])
def test_a_mask_is_bool(data, wrong):
    with pytest.raises(TypeError, match="^omega must be a mask of dtype bool"):
        nt.Problem(*data, 0.1, omega=wrong)


def test_unknown_omega(data):
    with pytest.raises(ValueError, match="^omega must be 'active', 'linear' or a bool mask; got 'relu'"):
        nt.Problem(*data, 0.1, omega="relu")


@pytest.mark.parametrize("wrong", [1, "yes", None, np.ones(3)])
def test_neuronwise_is_a_flag(data, wrong):
    with pytest.raises(TypeError, match="^neuronwise must be True or False"):
        nt.Problem(*data, 0.1, neuronwise=wrong)


# epsilon


@pytest.mark.parametrize("name", ["epsilon", "epsilon_abs"])
def test_radii_that_are_refused(data, name):
    for wrong in (-0.1, -1e-300, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"^{name} must be finite and at least 0"):
            nt.Problem(*data, **{name: wrong})
    for wrong in ("0.1", True, 0.1j, [0.1], np.array([0.1])):
        with pytest.raises(TypeError, match=f"^{name} must be a number"):
            nt.Problem(*data, **{name: wrong})


def test_exactly_one_radius(data):
    with pytest.raises(ValueError, match="one of epsilon .* and epsilon_abs"):
        nt.Problem(*data)
    with pytest.raises(ValueError, match="one of epsilon .* and epsilon_abs"):
        nt.Problem(*data, 0.1, epsilon_abs=1.0)


def test_relative_and_absolute_radius_agree(data):
    X, Y = data[0], np.maximum(data[1], 0)
    assert nt.Problem(X, Y, 0.1).epsilon == pytest.approx(0.1 * np.linalg.norm(Y), rel=1e-12)
    assert nt.Problem(X, Y, epsilon_abs=3.0).epsilon == 3.0
    # entries of Y outside Omega do not count
    assert nt.Problem(X, data[1], 0.1).epsilon == pytest.approx(0.1 * np.linalg.norm(Y), rel=1e-12)


@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
@pytest.mark.parametrize("epsilon", [1.0, 1.5, 1e6])
def test_a_radius_so_large_that_nothing_is_needed(data, epsilon, linear, dtype):
    """W = 0 exactly, at once."""
    X, Y = data[0].astype(dtype), np.maximum(data[1], 0).astype(dtype)
    solution = check(nt.Problem(X, Y, epsilon, omega="linear" if linear else "active"))
    assert not solution.W.any()
    assert solution.iterations == 0
    assert solution.certificate.gap == solution.certificate.objective == solution.certificate.dual_bound == 0


def test_a_radius_just_too_small_for_nothing(data):
    assert check(nt.Problem(data[0], np.maximum(data[1], 0), 0.999)).W.any()


def test_zero_is_not_optimal_below_negative_bounds(data):
    problem = nt.Problem(data[0], np.maximum(data[1], 0), 1.0, V=np.minimum(data[1], 0) / 2)
    assert not problem.zero_is_feasible
    assert check(problem).W.any()


def test_bounds_that_make_it_infeasible(data):
    """A row of ones among the inputs, and one sample with no input at all that must be negative."""
    X, Y = np.hstack([data[0], np.zeros((12, 1))]), np.hstack([np.maximum(data[1], 0), np.zeros((4, 1))])
    V = np.zeros(Y.shape)
    V[2, -1] = -1
    solution = nt.Solver(nt.Problem(X, Y, 0.1, V=V)).solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert solution.smallest_epsilon is None


# nt.solve and Solver


def test_solve_takes_the_parameters_of_both(data):
    X, Y = data[0], np.maximum(data[1], 0)
    solution = nt.solve(X, Y, epsilon=0.1, V=0.0, C=2.0, neuronwise=True, gap_tol=1e-4, backend="numpy")
    assert solution.status == nt.Status.SOLVED
    assert solution.settings["gap_tol"] == 1e-4
    assert solution.settings["backend"] == "numpy"
    with pytest.raises(TypeError, match="did you mean gap_tol"):
        nt.solve(X, Y, epsilon=0.1, gap_tl=1e-4)
    with pytest.raises(TypeError, match="Y is missing"):
        nt.solve(X, epsilon=0.1)
    gram = nt.Gram(12, 4).add(X, Y)
    with pytest.raises(TypeError, match="leave Y out"):
        nt.solve(gram, Y, epsilon=0.1)
    with pytest.raises(TypeError, match="V cannot be given with a Gram"):
        nt.solve(gram, epsilon=0.1, V=0.0)


def test_gram_problems_at_the_door(data):
    with pytest.raises(TypeError, match="gram must be a nettrim.Gram"):
        nt.Problem.from_gram(data[0] @ data[0].T, 0.1)
    with pytest.raises(ValueError, match="no samples"):
        nt.Problem.from_gram(nt.Gram(12, 4), 0.1)
    gram = nt.Gram(12, 4).add(*data)
    with pytest.raises(ValueError, match="epsilon must be at least 1e-5"):
        nt.Problem.from_gram(gram, 1e-6)
    with pytest.raises(TypeError, match="dtype"):
        nt.Problem.from_gram(gram, 0.1, dtype=int)


def test_replace_refuses_unknown_names(data):
    problem = nt.Problem(data[0], np.maximum(data[1], 0), 0.1)
    with pytest.raises(TypeError, match="cannot change radius; accepted: .*epsilon"):
        problem.replace(radius=1.0)
    gram = nt.Problem.from_gram(nt.Gram(12, 4).add(*data), 0.1)
    with pytest.raises(TypeError, match="cannot change Y"):
        gram.replace(Y=data[1])
    with pytest.raises(TypeError, match="cannot change Y"):
        nt.Solver(gram).update(Y=data[1])


def test_replace_changes_one_thing(data):
    X, Y = data[0], np.maximum(data[1], 0)
    problem = nt.Problem(X, Y, 0.1, V=0.5, C=np.arange(12.0), neuronwise=True)
    other = problem.replace(epsilon=0.2)
    assert other.epsilon == pytest.approx(2 * problem.epsilon)
    assert other.X is problem.X
    assert other.neuronwise
    np.testing.assert_array_equal(other.C, problem.C)
    np.testing.assert_array_equal(other.V, problem.V)
    # the default Omega follows the new outputs, a given one stays
    flipped = Y[:, ::-1].copy()
    np.testing.assert_array_equal(problem.replace(Y=flipped).mask, flipped > 0)
    mask = np.zeros(Y.shape, bool)
    mask[:, ::2] = True
    np.testing.assert_array_equal(nt.Problem(X, Y, 0.1, omega=mask).replace(Y=flipped).mask, mask)


def test_outputs_that_no_relu_puts_out_are_warned_of(rng):
    X, Y = rng.standard_normal((6, 30)), rng.standard_normal((3, 30))
    with pytest.warns(UserWarning, match="Y has negative entries.*linear") as caught:
        problem = nt.Problem(X, Y, epsilon=0.1)
    # the warning points at the caller, however deep the problem is made
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="negative") as caught:
        nt.solve(X, Y, epsilon=0.9)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nt.Problem(X, Y, epsilon=0.1, omega="linear")
        nt.Problem(X, Y, epsilon=0.1, omega=Y > 0)
        nt.Problem(X, np.maximum(Y, 0), epsilon=0.1)
        problem.replace(epsilon=0.2)


def test_samples_in_rows_of_a_square_layer_are_warned_of(rng):
    X = np.abs(rng.standard_normal((30, 6)))
    with pytest.warns(UserWarning, match=r"6 samples.*X\.T"):
        nt.Problem(X, X, epsilon=0.1)


def test_a_misspelled_option_is_named_before_what_is_missing(rng):
    X = np.abs(rng.standard_normal((6, 30)))
    with pytest.raises(TypeError, match="epsilonn"):
        nt.solve(X, X[:3], epsilonn=0.1)


def test_gram_hints_at_samples_in_rows(rng):
    with pytest.raises(ValueError, match=r"X must be 6 x P.*X\.T"):
        nt.Gram(6, 3).add(rng.standard_normal((30, 6)), rng.standard_normal((30, 3)))
