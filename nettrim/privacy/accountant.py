"""What DP-SGD has spent, by Opacus' accountants, and what that does not cover."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from nettrim.extras import install

__all__ = ["MASK_NOTICE", "PrivacySpent", "epsilon"]

#: said wherever a mask was chosen by looking at the data that epsilon is about
MASK_NOTICE = "mask learned on private data: not covered by epsilon"


@dataclass(frozen=True)
class PrivacySpent:
    """What training has cost, and what that does not say.

    Attributes
    ----------
    epsilon, delta : float
        Of differential privacy when one example is added or removed; infinite without noise.
    sigma : float
    rate : float
        Of sampling.
    steps : int
    accountant : str
    notice : str
        `MASK_NOTICE`, or empty.
    """

    epsilon: float
    delta: float
    sigma: float
    rate: float
    steps: int
    accountant: str
    notice: str = ""

    def __str__(self) -> str:
        said = f"epsilon = {self.epsilon:.3g} at delta = {self.delta:g} ({self.accountant.upper()} accountant)"
        return f"{said}; {self.notice}" if self.notice else said


def epsilon(
    steps: int,
    rate: float,
    sigma: float,
    delta: float = 1e-5,
    private_mask: bool = False,
    accountant: str = "prv",
) -> PrivacySpent:
    """The privacy that DP-SGD has spent, by one of Opacus' accountants: an upper bound.

    Neighbouring data sets differ by one example that is added or removed. To replace an example, as a Hamming distance
    of one between sets of the same size says, is two such changes, and costs more.

    Parameters
    ----------
    steps : int
    rate : float
        Probability that an example is in a batch, in (0, 1].
    sigma : float
        Standard deviation of the noise in the sum of clipped gradients, in units of C.
    delta : float
        In (0, 1).
    private_mask : bool
        Whether a mask was chosen by looking at the same data: nothing of that is in epsilon, and the result says so.
    accountant : {"prv", "rdp"}
        Numerical composition (Gopi et al. 2021), which is tighter, or Renyi divergences (Mironov 2017).

    Returns
    -------
    PrivacySpent

    Raises
    ------
    ValueError
        An argument that is not as said, by its name.
    ImportError
        Opacus is missing; names the extra that has it.
    """
    for name, value, fits, range_ in (
        ("steps", steps, steps >= 0, "at least 0"),
        ("rate", rate, 0 < rate <= 1, "in (0, 1]"),
        ("sigma", sigma, 0 <= sigma < math.inf, "finite and at least 0"),
        ("delta", delta, 0 < delta < 1, "in (0, 1)"),
    ):
        if not fits:
            raise ValueError(f"{name} must be {range_}; got {value!r}")
    if accountant not in ("prv", "rdp"):
        raise ValueError(f'accountant must be "prv" or "rdp"; got {accountant!r}')
    if steps == 0 or sigma == 0:
        spent = math.inf if steps else 0.0
    else:
        spent = _spent(steps, rate, sigma, delta, accountant)
    return PrivacySpent(spent, delta, sigma, rate, steps, accountant, MASK_NOTICE if private_mask else "")


@lru_cache(maxsize=64)
def _spent(steps: int, rate: float, sigma: float, delta: float, accountant: str) -> float:
    """Of Opacus. Kept, since a study asks for the same ones again and again."""
    try:
        from opacus.accountants import create_accountant
    except ImportError as error:
        raise ImportError(f"the accountant needs Opacus: {install('privacy')}") from error
    made = create_accountant(accountant)
    made.history = [(sigma, rate, steps)]
    return float(made.get_epsilon(delta=delta))
