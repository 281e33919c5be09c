"""Exploration: lists that are drawn, with the probability of what was drawn, for training and for counterfactual
evaluation (inverse propensity scoring).

*Epsilon*: at each place, with probability ε the item is drawn evenly from the candidates that are left, else it is
the best of them. *Plackett–Luce*: each place is drawn with the softmax of score / temperature over the candidates
that are left (Luce 1959, Plackett 1975), by sorting scores with Gumbel noise added (Kool et al., ICML 2019). A
model's scores are the logits of its softmax, so temperature 1 draws by the model's own belief.

A list is a function of its seed, and its beginning does not depend on how long it is, so pages of one list fit
together as long as the candidates are the same. The raw stream of PCG64 is used, which NumPy promises not to change.
"""

import secrets
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from serving.columns import Float64
from serving.policy_config import ExplorationSettings
from serving.user_encoder import Floats
from streaming.rows import Int64


@dataclass(frozen=True)
class Drawn:
    """A list that was drawn.

    Attributes:
        order: (k,) positions among the candidates, in the order in which they are shown.
        propensities: (k,) float64. Epsilon: the probability that this item stands at this place, over all lists that
            could have been drawn. Plackett–Luce: the same, given the items before it.
        log_probability: natural logarithm of the probability of the list as a whole.
    """

    order: Int64
    propensities: Float64
    log_probability: float


def new_seed() -> int:
    """A seed for one list, 0 to 2⁶³ − 1."""
    return secrets.randbits(63)


def draw(scores: Floats, k: int, settings: ExplorationSettings, seed: int) -> Drawn:
    """Draw a list of k of n candidates.

    Args:
        scores: (n,) best first.
        k: wanted; at most n are returned.
        settings: whose ``kind`` is not ``off``.
        seed: gives the same list again.
    """
    assert settings.kind != "off", "there is nothing to draw"
    k = min(k, len(scores))
    if settings.kind == "epsilon":
        return _epsilon(len(scores), k, settings.epsilon, seed)
    return _plackett_luce(scores.astype(np.float64) / settings.temperature, k, seed)


def _uniform(seed: int, count: int) -> Float64:
    """(count,) numbers between 0 and 1, neither included."""
    raw = np.random.PCG64(seed).random_raw(count)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _plackett_luce(logits: Float64, k: int, seed: int) -> Drawn:
    noise = -np.log(-np.log(_uniform(seed, len(logits))))
    order = np.argsort(-(logits + noise), kind="stable")
    drawn = logits[order]
    left = np.logaddexp.accumulate(drawn[::-1])[::-1]  # log of the sum over this item and those behind it
    log_given = (drawn - left)[:k]
    return Drawn(order[:k], np.exp(log_given), float(log_given.sum()))


def _epsilon(n: int, k: int, epsilon: float, seed: int) -> Drawn:
    left, order, probability = list(range(n)), [], 0.0
    for explore, pick in _uniform(seed, 2 * k).reshape(k, 2):
        chosen = int(pick * len(left)) if explore < epsilon else 0
        given = epsilon / len(left) + (1 - epsilon) * (chosen == 0)
        probability += np.log(given)
        order.append(left.pop(chosen))
    rows = np.array(order, np.int64)
    return Drawn(rows, _marginals(n, k, epsilon)[rows, np.arange(k)], float(probability))


@lru_cache(maxsize=32)
def _marginals(n: int, k: int, epsilon: float) -> Float64:
    """(n, k) the probability that the item of rank r is shown at place j.

    It is at place j if it was not drawn before, and then is either drawn evenly or the best that is left. So all
    there is to follow is how many better items were taken before it: ``still[r, b]`` is the probability that before
    place j the item r is left, and b of the r items better than it are gone.
    """
    ranks, gone = np.arange(n)[:, None], np.arange(k + 1)[None, :]
    better = np.maximum(ranks - gone, 0)  # (n, k + 1) better items that are left
    first = ranks == gone
    still = np.zeros((n, k + 1))
    still[:, 0] = 1.0
    shown = np.empty((n, k))
    for place in range(k):
        left = n - place
        shown[:, place] = (still * (epsilon / left + (1 - epsilon) * first)).sum(1)
        # one of the better ones is taken: the best by rule, or one drawn evenly
        taken = still * np.where(better > 0, (1 - epsilon) + epsilon * better / left, 0.0)
        worse = np.maximum(left - better - 1, 0)
        still = still * (epsilon * worse / left)
        still[:, 1:] += taken[:, :-1]
    return shown
