"""What an answer depends on, as a short tag: for conditional requests, and for pages of one list.

A tag names the model, the catalogue, the user's state and what was asked, so the same tag means the same list in
every replica. A page ends with a cursor that holds the tag of the list and a position; the next page is cut from the
same list, and when the list has changed in between the request is refused, since a page of another list would repeat
or skip items.
"""

import base64
from dataclasses import dataclass

import xxhash

from serving.ask import Ask
from serving.errors import ConflictError, InvalidRequestError


@dataclass(frozen=True)
class Cursor:
    """Where in which list a page begins; ``seed`` is that of its exploration, -1 where there was none."""

    tag: str
    start: int
    seed: int = -1

    def text(self) -> str:
        """As it stands in an answer: opaque, and safe in a URL."""
        return base64.urlsafe_b64encode(f"{self.tag}.{self.start}.{self.seed}".encode()).decode().rstrip("=")


def cursor_of(ask: Ask) -> Cursor | None:
    """Read the cursor of a request; None where it has none.

    Raises:
        InvalidRequestError: it is none that was given out.
    """
    if ask.cursor is None:
        return None
    try:
        padded = ask.cursor + "=" * (-len(ask.cursor) % 4)
        tag, start, seed = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii").split(".")
        if not (len(tag) == 16 and start.isdecimal() and len(start) < 7 and len(seed) < 20):
            raise ValueError("not of this form")
        return Cursor(tag, int(start), int(seed))
    except ValueError:
        raise InvalidRequestError(
            f"{ask.place}/cursor", "expected the value of `next` in an answer, or nothing for the first page"
        ) from None


def list_tag(ask: Ask, made_from: tuple[object, ...]) -> str:
    """The tag of a list, whatever its pages: of what it was made from, and of what was asked but for k."""
    asked = (
        ask.user_id,
        ask.events,
        ask.exclude_seen,
        tuple(ask.exclude),
        ask.filter,
        ask.among,
        ask.diversity,
    )
    return xxhash.xxh3_64_hexdigest(repr((made_from, asked)).encode())


def page_tag(tag: str, start: int, k: int, explain: bool) -> str:
    """The entity tag of one page, weak: what is like it may differ in its ages (RFC 9110, section 8.8)."""
    return f'W/"{tag}.{start}.{k}{"e" if explain else ""}"'


def known(tags: str | None, tag: str) -> bool:
    """Whether ``If-None-Match`` names a tag."""
    return tags is not None and (tag in tags or tags.strip() == "*")


def check_same_list(cursor: Cursor | None, tag: str) -> None:
    """Refuse a cursor of another list.

    Raises:
        ConflictError: events, a model or the catalogue have changed the list since, or something else was asked.
    """
    if cursor is not None and cursor.tag != tag:
        raise ConflictError(
            "the list has changed since its page before, or the request differs from that of its first page; "
            "ask again without cursor"
        )
