"""The recommender: items from text and id, a causal transformer over a user's events, scores by scaled cosine.

Legend for shape suffixes: B rows of a batch, L positions, d width, N items, D text width, H heads.

An item is ``LayerNorm(W·text + id_embedding[slot])``; slot -1 means "no id", so an item nobody has touched is
served from its text alone. Id dropout during training makes the text half carry its share.

The user encoder reads (item, event type, time gap) and predicts the next item at every position. It is
invariant to where in the row a sequence stands: positions enter only as *distances* (a learned bias per head,
Raffel et al. 2020, arXiv:1910.10683, section 2.1), so a row may be padded on the left to any length and an
output in the middle of a training chunk equals the output served at the row's end. It is also invariant to
the norm of the item representations it reads, so unit vectors stored in a bundle are as good as raw ones.

Cost at the defaults (2 blocks, d = 64, L = 50): 0.1M weights beside the id table, about 10 MFLOP per event.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from training.config import ModelConfig
from training.repeats import TIME_BUCKETS, RepeatHead, time_buckets, with_repeats

FIRST = TIME_BUCKETS  # the bucket of a history's first event: a model knows a newcomer by it


def gap_buckets(times: Tensor, mask: Tensor) -> Tensor:
    """Bucket the time since the previous event.

    Args:
        times: (..., L) int64, epoch milliseconds, time-ordered. mask: (..., L) bool, True where there is an event.

    Returns:
        (..., L) int64, see `time_buckets`; `FIRST` where no event stands before.
    """
    gaps = torch.zeros_like(times)
    gaps[..., 1:] = times[..., 1:] - times[..., :-1]
    follows = torch.zeros_like(mask)
    follows[..., 1:] = mask[..., :-1]
    return time_buckets(gaps).where(follows, FIRST)


class Block(nn.Module):
    """Pre-norm attention and feed-forward with a distance bias per head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.norm_attention = nn.LayerNorm(config.dim)
        self.query_key_value = nn.Linear(config.dim, 3 * config.dim)
        self.attention_out = nn.Linear(config.dim, config.dim)
        self.norm_feed = nn.LayerNorm(config.dim)
        self.feed_in = nn.Linear(config.dim, config.feed_factor * config.dim)
        self.feed_out = nn.Linear(config.feed_factor * config.dim, config.dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """One block on x (B, L, d); bias (B, H, L, L) is -inf where attention is forbidden."""
        B, L, d = x.shape
        qkv = self.query_key_value(self.norm_attention(x)).view(B, L, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, L, d/H)
        rate = self.dropout if self.training else 0.0
        mixed = fn.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=0.0)
        x = x + fn.dropout(self.attention_out(mixed.transpose(1, 2).reshape(B, L, d)), rate)
        fed = self.feed_out(fn.gelu(self.feed_in(self.norm_feed(x))))
        return x + fn.dropout(fed, rate)


class SequenceModel(nn.Module):
    """Item representations and the causal user encoder (see the module's docstring)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.dim
        self.text_projection = nn.Linear(config.text_dim, d, bias=False)
        self.id_embedding = nn.Embedding(config.id_capacity, d)
        self.item_norm = nn.LayerNorm(d)
        self.type_embedding = nn.Embedding(config.num_types, d)
        self.gap_embedding = nn.Embedding(TIME_BUCKETS + 1, d)
        self.distance_bias = nn.Embedding(config.length, config.blocks * config.heads)
        self.input_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.output_norm = nn.LayerNorm(d)
        self.repeats = RepeatHead(d, config.length) if config.repeats == "copied" else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.type_embedding, self.gap_embedding):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.zeros_(self.distance_bias.weight)
        if self.repeats is not None:
            for table in (self.repeats.distance_bias, self.repeats.time_bias):
                nn.init.zeros_(table.weight)
        # Unit text vectors have entries near 1/sqrt(D): this keeps both halves of an item at a like scale.
        nn.init.normal_(self.text_projection.weight, std=self.config.text_init)
        nn.init.normal_(self.id_embedding.weight, std=self.config.id_init)

    def item_representations(
        self, text_vectors: Tensor, slots: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Represent items.

        Args:
            text_vectors: (N, D) float32 text vectors; zeros where an item has no text.
            slots: (N,) int64 rows of the id table; -1 = no id, text alone.
            generator: randomness of id dropout (training mode only); the default generator if None.

        Returns:
            (N, d) float32, before any L2 normalisation.
        """
        has_id = slots >= 0
        if self.training and self.config.id_dropout > 0:
            draw = torch.rand(slots.shape, generator=generator, device=slots.device)
            has_id = has_id & (draw >= self.config.id_dropout)
        ids = self.id_embedding(slots.clamp(min=0)) * has_id.unsqueeze(-1)
        text = self.text_projection(text_vectors)
        represented: Tensor = self.item_norm((text + ids).float())
        return represented

    def forward(self, items: Tensor, types: Tensor, times: Tensor, mask: Tensor) -> Tensor:
        """Encode right-aligned histories; causal.

        Args:
            items: (B, L, d) item representations (of any positive norm), zeros where padded; L <= length.
            types: (B, L) int64 event type codes; one that came after the model was made is read as the first.
            times: (B, L) int64 epoch milliseconds, time-ordered; anything where padded.
            mask: (B, L) bool, True where there is an event.

        Returns:
            (B, L, d): at each position, the user after that event. Rows that are all padding give finite values.
        """
        d = self.config.dim
        scaled = fn.normalize(items, dim=-1) * d**0.5
        gaps = self.gap_embedding(gap_buckets(times, mask))
        types = types.where(types < self.config.num_types, 0)
        x = self.input_norm(scaled + self.type_embedding(types) + gaps)
        x = fn.dropout(x, self.config.dropout if self.training else 0.0)
        for block, bias in zip(self.blocks, self._attention_biases(mask), strict=True):
            x = block(x, bias)
        users: Tensor = self.output_norm(x)
        return users

    def _attention_biases(self, mask: Tensor) -> list[Tensor]:
        """Per block (B, H, L, L): its biases of distance, -inf for the future and for padding.

        A position always sees itself.
        """
        L = mask.shape[1]
        at = torch.arange(L, device=mask.device)
        distance = at[:, None] - at[None, :]  # (L, L) query minus key
        biases = self.distance_bias(distance.clamp(min=0)).permute(2, 0, 1)  # (blocks * H, L, L)
        allowed = (distance >= 0) & (mask[:, None, :] | (distance == 0))  # (B, L, L)
        out = torch.zeros(allowed.shape, device=mask.device).masked_fill(~allowed, float("-inf")).unsqueeze(1)
        return [out + own for own in biases.split(self.config.heads)]

    def scores(self, users: Tensor, items: Tensor) -> Tensor:
        """Scaled cosine of every user vector with every item: (..., d) and (N, d) give (..., N)."""
        return self.config.scale * (fn.normalize(users, dim=-1) @ fn.normalize(items, dim=-1).T)

    def next_scores(
        self, history: Tensor, types: Tensor, times: Tensor, mask: Tensor, items: Tensor, rows: Tensor
    ) -> Tensor:
        """(B, N): scores of items (N, d) after the last event of each history, repeats as they are modelled.

        Args:
            history, types, times, mask: as in `forward`. rows: (B, L) int64, rows of ``items`` in the history.
        """
        users = self(history, types, times, mask)[:, -1:]
        scores = self.scores(users[:, 0], items).float()
        if self.repeats is None:
            return scores
        return with_repeats(scores, self.repeats(users, history, times, mask)[:, 0], rows)
