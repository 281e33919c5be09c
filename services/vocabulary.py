"""The words by which other people's events name users, items, times and types.

The order within a list is a preference: a `user_id` is a better user than a `client_id` beside it.
"""

from collections.abc import Sequence

from services.shapes import words


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


USERS = _list(
    "user customer visitor member shopper buyer account profile person subscriber viewer listener reader player "
    "client anonymous distinct uid cookie device"
)
ITEMS = _list(
    "item product sku article movie content video track song book asin isbn listing offer game film show episode "
    "story post recipe course podcast hotel place restaurant news merchandise object entity resource document ad"
)
EVENTS = _list("event message record log insert request hit tracking meta metadata header")
IDS = frozenset(_list("id ids key code no number uuid guid hash pseudo ref"))
NOT_IDS = frozenset(
    _list(
        "name title type kind category categories class price agent session segment country locale language lang "
        "email mail age gender sex time date ts at created updated timestamp count quantity index position url uri "
        "path slug status brand variant color size list score rating value amount currency ip version properties "
        "group tier"
    )
)
TYPES = frozenset(
    _list("event action interaction activity behavior behaviour type kind name verb operation op")
)
VALUES = _list(
    "rating stars score price amount revenue value total duration dwell seconds watchtime playtime listentime "
    "quantity"
)
CATEGORIES = _list("category categories genre genres department section cat topic")
NOT_OF_ITEMS = frozenset(
    _list("device geo browser page os app campaign user")
)  # their categories are no item's
TIMES = _list(
    "timestamp occurred happened tstamp time datetime date ts when at utc millis ms created sent received"
)
NO_TIMES = frozenset(
    _list("received created updated loaded collector etl expires birth birthday")
)  # of an event

_MEANINGS = {
    kind: frozenset(_list(signs))
    for kind, signs in (
        (
            "purchase",
            "purchase purchased purchases buy bought order ordered transaction payment paid sale sold",
        ),
        ("cart", "cart addtocart addtobasket basket bag trolley"),
        ("rating", "rating rate rated review reviewed score scored stars"),
        (
            "like",
            "like liked favorite favorited favourite favourited wishlist wishlisted bookmark bookmarked heart "
            "love loved save saved upvote upvoted",
        ),
        ("click", "click clicked clicks tap tapped select selected"),
        (
            "view",
            "view viewed views pageview detail visit visited open opened browse browsed seen read watch watched "
            "play played listen listened",
        ),
    )
}  # the first that fits counts

# Their opposites, steps on the way, and what is done to no item: better a dead letter than a wrong signal.
_AGAINST = frozenset(
    _list(
        "remove removed delete deleted cancel cancelled canceled refund refunded return returned dislike disliked "
        "unlike unliked unfavorite unsave downvote downvoted abandon abandoned fail failed error begin info login "
        "logout search searched session forget erase updated shipped list"
    )
)


def known_type(name: str, known: Sequence[str]) -> str | None:
    """The known type that a name stands for; None where that is not plain.

    Args:
        name: an observed type, such as `add_to_cart`.
        known: `streaming.event_types`.
    """
    if name in known:
        return name
    said = words(name)
    for candidate in known:
        if words(candidate) == said:
            return candidate
    if _AGAINST.intersection(said):
        return None
    meant = [kind for kind, signs in _MEANINGS.items() if signs.intersection(said)]
    if not meant and said == ["product", "added"]:
        meant = ["cart"]
    if "view" in meant and {"cart", "purchase"}.intersection(meant):
        return None  # looking at the cart, or at an order
    return next((kind for kind in meant if kind in known), None)
