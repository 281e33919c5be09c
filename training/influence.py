"""Limits on what one user and one item may weigh in a window.

A shilling attack needs many events on few items, or many events of few users. Neither is forbidden to people, so
nothing is thrown away: beyond a limit the weights of the events as targets are scaled down together, until the item
or the user weighs what the limit allows. The limit of an item follows from its own past, so that a favourite may stay
one and a newcomer may grow, but not by leaps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.config import InfluenceConfig
from training.data import Sequences
from training.progress import PopularityCounts

_MANY = 0.9  # quantile of the users' numbers of events that their limit is a multiple of


def limited(window: Sequences, past: PopularityCounts, config: InfluenceConfig) -> Sequences:
    """The window with event weights that keep to the limits; the same object where they are switched off.

    Args:
        window: R rows with new events. past: counts of items before the window. config: the limits.
    """
    if not config.enabled or not len(window.items):
        return window
    fresh = window.new_events()
    rows = np.repeat(np.arange(len(window)), np.diff(window.offsets))
    weights = window.target_weights().astype(np.float64) * fresh
    by_user = np.bincount(rows, weights, len(window))
    active = by_user > 0
    if not active.any():
        return window
    most = config.user_events * float(np.quantile(by_user[active], _MANY))
    scale = np.minimum(1.0, most / np.maximum(by_user, 1e-12))[rows]
    hashes, item = np.unique(window.items, return_inverse=True)
    by_item = np.bincount(item, weights * scale, len(hashes))
    expected = past.shares(hashes) * float(by_item.sum())
    allowed = config.item_growth * expected + config.item_floor
    scale *= np.minimum(1.0, allowed / np.maximum(by_item, 1e-12))[item]
    own = np.ones(len(rows)) if window.weights is None else window.weights
    return replace(window, weights=(own * scale).astype(np.float32))


def clipped_rows(gradient: Tensor, ratio: float) -> Tensor:
    """Scale down the rows of a gradient (B, L, d) whose norm is over ``ratio`` times the median of the others'.

    A sequence that pulls much harder than its batch is held to that; the whole batch's norm is clipped elsewhere.
    """
    norms = gradient.flatten(1).norm(dim=1)
    some = norms[norms > 0]
    if not len(some):
        return gradient
    most = ratio * torch.median(some)
    return gradient * torch.clamp(most / norms.clamp(min=1e-30), max=1.0).view(-1, 1, 1)
