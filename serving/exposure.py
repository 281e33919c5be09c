"""How much of what people would be shown now is some items: what an attacker wants, and what a defence prevents."""

from collections.abc import Sequence

from serving.ask import Ask
from serving.engine import Recommender, body_of

_TOGETHER = 16  # users whose lists are made at once; between two batches, requests have their turn
_PLACES = 10


def exposure(recommender: Recommender, users: Sequence[str], targets: Sequence[str]) -> float:
    """Return the share of the places in users' lists (ten each) that targets take, 0..1; takes a while.

    Args:
        recommender: ranks; nothing is logged as shown.
        users: ids, each that `Limits.check_id` would let pass.
        targets: ids of items.
    """
    wanted, shown, hits = frozenset(targets), 0, 0
    for start in range(0, len(users), _TOGETHER):
        asks = [Ask(user_id=user, k=_PLACES) for user in users[start : start + _TOGETHER]]
        for answered in recommender.preview(asks):
            items = body_of(answered).items
            shown += len(items)
            hits += sum(item.item_id in wanted for item in items)
    return hits / max(shown, 1)
