"""Statistics that may be looked at as often as one likes.

A fixed-size confidence interval looked at every day is wrong far more often than it says. A confidence sequence holds
at all sizes at once. Here: the asymptotic one by a Gaussian mixture of Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences" (arXiv:2103.06476):

    mean_t ± sd_t · sqrt( 2 (t·r² + 1) / (t²·r²) · log( sqrt(t·r² + 1) / a ) )

It is asymptotic, so the first hundred observations say nothing.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BURN_IN = 100  # observations before which there is no interval


def confidence_sequence(
    values: Floats, alpha: float = 0.05, tightest_at: int = 5000
) -> tuple[Floats, Floats]:
    """Mean and half-width after each observation, valid at all of them together with probability 1 - alpha.

    Args:
        values: (T,) in the order in which they came. alpha: probability of being wrong at any time.
        tightest_at: number of observations at which the interval is about as narrow as it can be.

    Returns:
        mean (T,), half-width (T,); the width is infinite for the first `BURN_IN`.
    """
    count = np.arange(1, len(values) + 1, dtype=np.float64)
    mean = np.cumsum(values) / count
    variance = np.maximum(np.cumsum(values**2) / count - mean**2, 0.0)
    log_alpha = -2 * math.log(alpha)
    mixture = (log_alpha + math.log(log_alpha) + 1) / tightest_at  # r²
    inner = count * mixture + 1
    width = np.sqrt(2 * inner / (count**2 * mixture) * np.log(np.sqrt(inner) / alpha)) * np.sqrt(variance)
    width[: BURN_IN - 1] = np.inf
    return mean, width


def effects(outcomes: Floats, treated: npt.NDArray[np.bool_], share: float) -> Floats:
    """Observations whose mean is the difference between treatment and control, for `confidence_sequence`.

    The augmented inverse-propensity-weighted pseudo-outcomes of the same paper, with the running mean of each
    arm as the regression: f = (m1 - m0) + A/p·(Y - m1) - (1 - A)/(1 - p)·(Y - m0), each mean taken over those before.

    Args:
        outcomes: (T,) of users in the order in which they came. treated: (T,) which of them got the treatment.
        share: p, the probability of getting it.
    """
    means = []
    for mine in (treated, ~treated):
        before: Ints = np.cumsum(mine) - mine
        total = np.cumsum(outcomes * mine) - outcomes * mine
        means.append(np.where(before > 0, total / np.maximum(before, 1), 0.0))
    one, zero = means
    return (one - zero) + np.where(treated, (outcomes - one) / share, -(outcomes - zero) / (1 - share))


def chi_square_tail(value: float, freedom: int) -> float:
    """Probability that a chi-square variable with so many degrees of freedom is above a value."""
    half = value / 2
    if freedom % 2:
        tail, order, term = (
            math.erfc(math.sqrt(half)),
            0.5,
            math.sqrt(half) * math.exp(-half) / math.gamma(1.5),
        )
    else:
        tail, order, term = math.exp(-half), 1.0, half * math.exp(-half)
    while order < freedom / 2:  # Q(a + 1, x) = Q(a, x) + x^a·e^-x / Γ(a + 1)
        tail += term
        order += 1
        term *= half / order
    return min(tail, 1.0)


def ratio_mismatch(counts: Ints, shares: Floats) -> float:
    """p-value of the chi-square test that users were split by these shares; small where the split is broken."""
    expected = counts.sum() * shares / shares.sum()
    value = float(((counts - expected) ** 2 / np.maximum(expected, 1e-12)).sum())
    return chi_square_tail(value, len(counts) - 1)
