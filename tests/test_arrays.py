"""Arrays of other libraries, on the host and on a GPU."""

from __future__ import annotations

import sys

import cuda_stand_in
import numpy as np
import pytest
from instances import infeasible_with_ray, random_problem

import nettrim as nt
from nettrim.arrays import to_host


class Foreign:
    """An array of another library on the host: DLPack is all that it speaks."""

    def __init__(self, a, error=None, kind=1):
        self.a, self.error, self.kind = a, error, kind

    def __dlpack_device__(self):
        return self.kind, 0

    def __dlpack__(self, **options):
        if self.error:
            raise self.error
        return self.a.__dlpack__(**options)


@pytest.fixture
def gpu(monkeypatch):
    """CuPy's part in moving arrays, on the CPU; no kernels are needed for that."""
    modules = cuda_stand_in.modules_of(None)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["cupy"]


def test_host_arrays_are_not_copied():
    a = np.ones((3, 4), np.float32)
    assert to_host(a, "X") is a
    assert np.shares_memory(to_host(Foreign(a), "X"), a)
    assert to_host(Foreign(a.T), "X").flags.f_contiguous


def test_another_librarys_arrays_give_the_same_answer():
    p = random_problem(np.random.default_rng(0), 12, 5, 200, weights="rows")
    expected = nt.Solver(p).solve()
    options = {"epsilon_abs": p.epsilon, "omega": Foreign(p.mask), "V": Foreign(p.V), "C": Foreign(p.C)}
    problem = nt.Problem(Foreign(p.X), Foreign(p.Y), **options)
    solution = nt.Solver(problem).solve()
    assert type(solution.W) is np.ndarray
    np.testing.assert_array_equal(solution.W, expected.W)
    assert nt.certify(problem, Foreign(solution.W), Foreign(solution.dual)) == expected.certificate
    gram = nt.Gram(12, 5).add(Foreign(p.X), Foreign(p.Y))
    assert gram.P == 200


@pytest.mark.parametrize("foreign", [False, True], ids=["CuPy", "other"])
@pytest.mark.parametrize("linear", [False, True], ids=["relu", "linear"])
def test_results_come_back_to_the_gpu(gpu, foreign, linear):
    p = random_problem(np.random.default_rng(0), 12, 5, 200, linear=linear)
    there = cuda_stand_in.ForeignArray if foreign else cuda_stand_in.device
    problem = nt.Problem(there(p.X), there(p.Y), epsilon_abs=p.epsilon, omega="linear" if linear else "active")
    solver = nt.Solver(problem)
    solution, expected = solver.solve(), nt.Solver(p).solve()
    for name in ("W", "dual"):
        assert isinstance(getattr(solution, name), gpu.ndarray)
        np.testing.assert_array_equal(cuda_stand_in.host(getattr(solution, name)), getattr(expected, name))
    assert nt.certify(problem, solution.W, solution.dual) == expected.certificate
    # and stay there when the problem changes, until X does
    assert isinstance(solver.update(epsilon=0.3).solve().W, gpu.ndarray)
    assert type(solver.update(X=p.X).solve().W) is np.ndarray


def test_torch_gets_tensors(gpu, monkeypatch):
    class Torch:
        """What torch would make of it."""

        @staticmethod
        def from_dlpack(a):
            assert isinstance(a, gpu.ndarray)
            return "a tensor"

    Tensor = type("Tensor", (cuda_stand_in.ForeignArray,), {"__module__": "torch"})
    monkeypatch.setitem(sys.modules, "torch", Torch)
    p = random_problem(np.random.default_rng(0), 12, 5, 200)
    assert nt.solve(Tensor(p.X), Tensor(p.Y), epsilon=0.1).W == "a tensor"


def test_a_ray_comes_back_to_the_gpu(gpu):
    p = infeasible_with_ray(np.random.default_rng(0), "outputs").problem
    problem = nt.Problem(cuda_stand_in.device(p.X), p.Y, epsilon_abs=p.epsilon, omega=p.mask, V=p.V)
    solution = nt.Solver(problem).solve()
    assert solution.status == nt.Status.INFEASIBLE
    assert isinstance(solution.ray, gpu.ndarray)
    assert nt.verify_ray(problem, solution.ray) > 0


@pytest.mark.parametrize(
    ("error", "kind", "expected", "message"),
    [
        (BufferError("Can't export tensors that require gradient, use tensor.detach()"), 1, ValueError, "detach"),
        (BufferError("Unsupported dtype in DLTensor."), 1, TypeError, "float32 or float64"),
        (None, 8, TypeError, "host or of a CUDA GPU"),
    ],
    ids=["gradient", "dtype", "device"],
)
@pytest.mark.parametrize("name", ["X", "Y", "omega", "V", "C"])
def test_what_cannot_be_shared_is_refused_by_name(name, error, kind, expected, message):
    p = random_problem(np.random.default_rng(0), 6, 3, 20, bound="array")
    arguments = {"X": p.X, "Y": p.Y, "omega": p.mask, "V": p.V, "C": p.C}
    arguments[name] = Foreign(arguments[name], error, kind)
    with pytest.raises(expected, match=f"^{name} .*{message}"):
        nt.Problem(**arguments, epsilon=0.1)


def test_gpu_arrays_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="X is on a GPU.*extra cuda12"):
        nt.Problem(cuda_stand_in.ForeignArray(np.ones((2, 3))), np.ones((1, 3)), epsilon=0.1)


def test_torch_tensors():
    """The real thing, where it is installed."""
    torch = pytest.importorskip("torch")
    p = random_problem(np.random.default_rng(0), 12, 5, 200)
    X, Y = torch.from_numpy(p.X), torch.from_numpy(p.Y)
    np.testing.assert_array_equal(nt.solve(X, Y, epsilon=0.1).W, nt.solve(p.X, p.Y, epsilon=0.1).W)
    with pytest.raises(ValueError, match="^X .*detach"):
        nt.Problem(X.clone().requires_grad_(), Y, epsilon=0.1)
