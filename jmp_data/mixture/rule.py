"""How often each data set appears in one epoch: temperature, explicit weights, or explicit repeats.

With sizes n_i and N = Σ n_i, temperature T gives p_i ∝ (n_i / N)^(1/T). The factor f_i = N p_i / n_i, divided by the
smallest factor, is the number of times that data set i repeats in an epoch, so nothing is left out and the least
repeated data set is seen once. Its share of the epoch is ceil(n_i f_i / min f) samples, taken by index modulo n_i: the
first structures get the odd visit.

Floating point alone could push a product that is an integer (above all n_i itself) over the next one, and `ceil` would
add a sample that the rule does not ask for. A product within `CEIL_GUARD` (relative) of an integer therefore counts as
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jmp_data.errors import ManifestError

CEIL_GUARD = 1e-12
"""Relative distance under which a product counts as an integer; rounding errors are some hundred times smaller."""

DEFAULT_TEMPERATURE = 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shares:
    """What the rule says for each data set, in order.

    Attributes:
        probabilities: (num_datasets,) p_i, summing to 1.
        repeats: (num_datasets,) visits of a structure per epoch, before rounding to whole samples.
        samples: (num_datasets,) samples per epoch.
    """

    probabilities: Floats
    repeats: Floats
    samples: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MixingRule:
    """One of three ways to say how much of each data set an epoch holds.

    Attributes:
        temperature: T of the rule above; 1 is proportional, `inf` uniform.
        weights: data set name → relative weight, in place of p_i.
        repeats: data set name → visits per epoch, used as they are.

    Raises:
        ManifestError: not exactly one of the three, or a value that is not positive.
    """

    temperature: float | None = None
    weights: Mapping[str, float] | None = None
    repeats: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("temperature", "weights", "repeats") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ManifestError(
                f"a mixture needs exactly one of temperature, weights and repeats; got {' and '.join(given) or 'none'}"
            )
        if self.temperature is not None and not self.temperature > 0:
            raise ManifestError(f"temperature is {self.temperature}; it must be positive (1 proportional, inf uniform)")
        for name, value in {**(self.weights or {}), **(self.repeats or {})}.items():
            if not 0 < value < math.inf:
                raise ManifestError(f"{given[0]} of data set {name} is {value}; leave the data set out instead")

    def shares(self, sizes: Mapping[str, int]) -> Shares:
        """Apply the rule.

        Args:
            sizes: data set name → number of structures, in the order of the mixture.

        Raises:
            ManifestError: a data set is empty, or weights or repeats do not name exactly the data sets.
        """
        for name, size in sizes.items():
            if size < 1:
                raise ManifestError(f"data set {name} has no structures left; leave it out or widen its subset")
        n = np.array(list(sizes.values()), np.float64)
        if self.repeats is not None:
            repeats = _aligned(self.repeats, list(sizes), "repeats")
            samples = _guarded_ceil(n * repeats)
            return Shares(samples / samples.sum(), repeats, samples)
        if self.weights is not None:
            weights = _aligned(self.weights, list(sizes), "weights")
        else:
            weights = (n / n.sum()) ** (1.0 / float(self.temperature or 1.0))
        probabilities = weights / weights.sum()
        factors = n.sum() * probabilities / n
        repeats = factors / factors.min()
        return Shares(probabilities, repeats, _guarded_ceil(n * repeats))


def _aligned(values: Mapping[str, float], names: Sequence[str], what: str) -> Floats:
    if set(values) != set(names):
        raise ManifestError(f"{what} name {sorted(values)}, the mixture holds {sorted(names)}; give one for each")
    return np.array([values[name] for name in names], np.float64)


def _guarded_ceil(values: Floats) -> npt.NDArray[np.int64]:
    nearest = np.rint(values)
    close = np.abs(values - nearest) <= CEIL_GUARD * np.maximum(values, 1.0)
    return np.where(close, nearest, np.ceil(values)).astype(np.int64).clip(1)
