"""A small network that tells fake users from people by their behaviour, and what its scores are worth.

It learns from windows that were trusted, each with simulated attacks added (`training.trust.simulation`): one logit
per user from the standardised features, two hidden layers with spectral norm (Miyato et al., ICLR 2018,
arXiv:1802.05957), which keeps scores of behaviour unlike anything seen from running away. What a score is worth is
read off honest users of windows it did not learn from: below the score that ``1 - doubted`` of them stay under a user
is trusted fully, above the one that ``1 - quarantined`` of them stay under not at all, in between linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as fn
from torch.nn.utils.parametrizations import spectral_norm

from training.config import TrustConfig
from training.trust.features import NAMES, Behaviour

Floats = NDArray[np.float64]
_HIDDEN, _STEPS, _RATE, _DECAY = 32, 400, 0.02, 1e-3
_CLIPPED = 6.0  # standard deviations beyond which a feature says no more


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            spectral_norm(nn.Linear(len(NAMES), _HIDDEN)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Linear(_HIDDEN, _HIDDEN)),
            nn.LeakyReLU(0.1),
        )
        self.out = nn.Linear(_HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.inner(x)).squeeze(1)
        return logits


@dataclass(frozen=True)
class Example:
    """Users of one window: features (R, F), and which of them are fake (R,)."""

    features: Floats
    fake: NDArray[np.bool_]


class Detector:
    """Scores users; see the module's docstring. Made by `fit` or `load`."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._mean, self._spread = state["mean"].numpy(), state["spread"].numpy()
        self._low, self._high = state["limits"].tolist()
        self._network = _Network()
        weights = {name.removeprefix("net."): t for name, t in state.items() if name.startswith("net.")}
        self._network.load_state_dict(weights)
        self._network.eval()
        self._state = state

    @property
    def windows(self) -> int:
        """Windows that had been trained on when it learned; 0 where nobody said."""
        return int(self._state["windows"]) if "windows" in self._state else 0

    @windows.setter
    def windows(self, count: int) -> None:
        self._state = self._state | {"windows": torch.tensor(count)}

    @classmethod
    def fit(
        cls, examples: list[Example], honest: list[Floats], config: TrustConfig, seed: int = 0
    ) -> Detector:
        """Learn to tell fakes apart, then read the limits off honest users.

        Args:
            examples: windows with simulated fakes. honest: features of the users of honest windows not among them.
            config: shares of honest users that may be doubted and quarantined. seed: of the first weights.

        Raises:
            ValueError: there is no fake or no honest user to learn from.
        """
        features = np.concatenate([one.features for one in examples])
        fake = np.concatenate([one.fake for one in examples])
        if not fake.any() or fake.all() or not sum(map(len, honest)):
            raise ValueError(
                "expected examples of fake and of honest users, and honest users to calibrate on"
            )
        people = features[~fake]
        mean, spread = people.mean(axis=0), people.std(axis=0) + 1e-6
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = _Network()
            _learn(network, _standardised(features, mean, spread), torch.from_numpy(fake).float())
        network.eval()
        state = {f"net.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()}
        state |= {"mean": torch.from_numpy(mean), "spread": torch.from_numpy(spread)}
        state["limits"] = torch.zeros(2, dtype=torch.float64)
        scores = np.concatenate([cls(state).scores(one) for one in honest])
        low, high = np.quantile(scores, [1 - config.doubted, 1 - config.quarantined], method="higher")
        # Never at once: a score between the best honest ones and the fakes must not decide by rounding.
        state["limits"] = torch.tensor([low, max(high, low + 0.1)], dtype=torch.float64)
        return cls(state)

    def scores(self, features: Floats) -> Floats:
        """(R,) logits of being fake for features (R, F)."""
        with torch.no_grad():
            logits = self._network(_standardised(features, self._mean, self._spread))
        found: Floats = logits.double().numpy()
        return found

    def trust(self, features: Floats) -> NDArray[np.float32]:
        """(R,) from 0 (to be quarantined) to 1."""
        worth = (self._high - self.scores(features)) / (self._high - self._low)
        trust: NDArray[np.float32] = np.clip(worth, 0.0, 1.0).astype(np.float32)
        return trust

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file(self._state, path)

    @classmethod
    def load(cls, path: Path) -> Detector:
        """Read what `save` wrote."""
        return cls(load_file(path))


def _standardised(features: Floats, mean: Floats, spread: Floats) -> Tensor:
    return torch.from_numpy(np.clip((features - mean) / spread, -_CLIPPED, _CLIPPED)).float()


def _learn(network: _Network, x: Tensor, fake: Tensor) -> None:
    """Full-batch steps; fakes weigh as much as people, however few they are."""
    weights = torch.where(fake > 0, 0.5 / fake.mean(), 0.5 / (1 - fake.mean()))
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    network.train()
    for _ in range(_STEPS):
        loss = (fn.binary_cross_entropy_with_logits(network(x), fake, reduction="none") * weights).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def reasons(seen: Behaviour, rows: NDArray[np.int64], usual: float = 6.0) -> list[str]:
    """Why each of these rows of a window stands out, as a fragment of a sentence.

    Args:
        seen: the window's behaviour. rows: (n,) places in it. usual: standard deviations above which an item bursts.
    """
    bursting = seen.surplus > usual
    had = np.bincount(seen.item, minlength=len(seen.hashes))
    told = []
    for row in rows.tolist():
        first, last = np.searchsorted(seen.row, [row, row + 1])
        items = seen.item[first:last]
        hot = items[bursting[items]]
        if len(hot):
            told.append(
                f"{len(hot)} of {len(items)} items are suddenly had by many (up to {had[hot].max()} users)"
            )
        else:
            told.append(f"{len(items)} items in an unusual combination")
    return told
