"""API keys: `hr_<id>_<secret>`, where only hashes are kept.

A secret has 256 random bits, so nobody guesses it from its hash and a fast hash does; a slow one, as passwords need,
would only make each request slow.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

from serving.security.config import ApiKey

_PREFIX = "hr"
_SECRET_BYTES = 32
_ID = re.compile("[a-z0-9-]{1,32}")
_ALGORITHM = "sha256:"


def make_key(key_id: str | None = None) -> tuple[str, str, str]:
    """Make a random key.

    Args:
        key_id: its name; None: a random one.

    Returns:
        Its id, the key to hand out, and the hash for the settings.

    Raises:
        ValueError: the id cannot be one.
    """
    key_id = key_id if key_id is not None else secrets.token_hex(4)
    if not _ID.fullmatch(key_id):
        raise ValueError(f"expected an id of 1 to 32 characters a-z, 0-9 and -, got {key_id!r}")
    key = f"{_PREFIX}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return key_id, key, _ALGORITHM + hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """Finds out whose key was sent.

    Args:
        keys: the keys of the settings.
        admin_key: the setting serving.admin_api_key, any text.
    """

    ADMIN = ApiKey(id="admin-api-key", hash=_ALGORITHM + "0" * 64, scopes=("admin",))

    def __init__(self, keys: Sequence[ApiKey], admin_key: str | None = None) -> None:
        self._keys = {
            key.id.encode(): (bytes.fromhex(key.hash.removeprefix(_ALGORITHM)), key) for key in keys
        }
        nobody = secrets.token_bytes(hashlib.sha256().digest_size)  # nothing hashes to it
        self._nobody = nobody, self.ADMIN
        self._admin = nobody if admin_key is None else hashlib.sha256(admin_key.encode()).digest()

    def find(self, sent: bytes) -> ApiKey | None:
        """Return the key that was sent, or None.

        Every call hashes once and compares twice in constant time, whatever was sent: the time taken tells neither
        which ids there are nor how much of a key is right.
        """
        digest = hashlib.sha256(sent).digest()
        key_id = sent.partition(b"_")[2].partition(b"_")[0]
        expected, key = self._keys.get(key_id, self._nobody)
        known = hmac.compare_digest(digest, expected)
        admin = hmac.compare_digest(digest, self._admin)
        return key if known else self.ADMIN if admin else None
