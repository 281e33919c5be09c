"""SASRec with the full softmax: the baseline to beat, as its authors built it but for the loss.

Kang and McAuley, ICDM 2018 (arXiv:1808.09781): learned positions, attention over the past, point-wise feed-forward
layers, one embedding table for inputs and outputs, dot products. With cross-entropy over all items it is far better
than with one sampled negative (Petrov and Macdonald, RecSys 2023, arXiv:2308.07192; Klenitskiy and Vasilev, RecSys
2023, arXiv:2309.07602), so that is what is trained here.

Legend: B rows, L positions, d width, N items.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from services.evaluation.corpus import Corpus, Int64, Split, sample
from services.evaluation.ranking import validated
from training.data import cut, make_batch

_VALIDATED_ON = 3000  # queries


@dataclass(frozen=True)
class SasrecSettings:
    """The published ones for MovieLens, but for the length, which follows the data."""

    dim: int = 64
    blocks: int = 2
    heads: int = 1
    length: int = 200
    dropout: float = 0.2
    lr: float = 1e-3
    batch_size: int = 64
    epochs: int = 100
    patience: int = 5


class Sasrec(nn.Module):
    """The network; item 0 of the table is padding."""

    def __init__(self, num_items: int, settings: SasrecSettings) -> None:
        super().__init__()
        d = settings.dim
        self.settings = settings
        self.items = nn.Embedding(num_items + 1, d, padding_idx=0)
        self.positions = nn.Embedding(settings.length, d)
        layer = [
            nn.TransformerEncoderLayer(
                d, settings.heads, d, settings.dropout, batch_first=True, norm_first=True, activation="relu"
            )
            for _ in range(settings.blocks)
        ]
        self.layers = nn.ModuleList(layer)
        self.norm = nn.LayerNorm(d)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        """Users (B, L, d) after each event of right-aligned items (B, L) codes, mask (B, L)."""
        L = items.shape[1]
        x = self.items((items + 1) * mask) * math.sqrt(self.settings.dim)
        x = x + self.positions(torch.arange(L - 1, -1, -1))  # the newest event has position 0
        x = fn.dropout(x, self.settings.dropout, self.training) * mask.unsqueeze(-1)
        future = torch.ones(L, L, dtype=torch.bool).triu(1)
        # a padded position looks at itself, so that no row is empty
        blocked = (future | ~mask[:, None, :]) & ~torch.eye(L, dtype=torch.bool)
        bias = torch.zeros(blocked.shape).masked_fill(blocked, float("-inf"))
        bias = bias.repeat_interleave(self.settings.heads, dim=0)
        for layer in self.layers:
            x = layer(x, src_mask=bias)
        users: Tensor = self.norm(x)
        return users

    def logits(self, users: Tensor) -> Tensor:
        """(…, N) dot products with every item."""
        return users @ self.items.weight[1:].T


class SasrecBaseline:
    """Trains the network on a split, keeps the epoch that is best on the validation.

    Args:
        settings: the network's. unseen: what the validation asks for, as `Ours`. seed: of weights and shuffling.
        tell: told of progress.
    """

    name = "sasrec"

    def __init__(
        self,
        settings: SasrecSettings,
        *,
        unseen: bool,
        seed: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._settings, self._unseen, self._seed, self._tell = settings, unseen, seed, tell
        self.settings: dict[str, Any] = {}

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        torch.manual_seed(self._seed)
        self._corpus = corpus
        self._network = Sasrec(corpus.num_items, self._settings)
        train = split.training_rows(corpus)
        codes = train.items.astype(np.int64) - 1
        optimizer = torch.optim.Adam(self._network.parameters(), self._settings.lr, betas=(0.9, 0.98))
        queries = sample(split.validation, _VALIDATED_ON, 0)
        rng = np.random.default_rng(self._seed)
        best, kept, best_epoch, curve, seconds = -1.0, self._network.state_dict(), 0, [], 0.0
        for epoch in range(1, self._settings.epochs + 1):
            began = time.monotonic()
            self._network.train()
            chunks = cut(train, self._settings.length, 0, int(rng.integers(self._settings.length)))
            chunks = chunks.take(rng.permutation(len(chunks)))
            for at in range(0, len(chunks), self._settings.batch_size):
                part = chunks.take(np.arange(at, min(at + self._settings.batch_size, len(chunks))))
                batch = make_batch(train, codes, part)
                wanted = batch.targets >= 0
                with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
                    logits = self._network.logits(self._network(batch.items, batch.mask)[wanted])
                loss = fn.cross_entropy(logits.float(), batch.targets[wanted])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            seconds += time.monotonic() - began
            figure = validated(self, corpus, queries, unseen=self._unseen)
            curve.append((epoch, figure))
            if figure > best:
                best, kept, best_epoch = figure, copy.deepcopy(self._network.state_dict()), epoch
            if self._tell:
                self._tell(
                    f"epoch {epoch}: validation {figure:.4f} (best {best:.4f} at {best_epoch}), {seconds:.0f} s"
                )
            if epoch - best_epoch >= self._settings.patience:
                break
        self._network.load_state_dict(kept)
        self.settings = {
            **vars(self._settings),
            "best_epoch": best_epoch,
            "validation_ndcg@10": best,
            "train_seconds": round(seconds, 1),
            "curve": curve,
        }

    @torch.no_grad()
    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        self._network.eval()
        batch = self._corpus.batch(queries, self._settings.length)
        return self._network.logits(self._network(batch.items, batch.mask)[:, -1])
