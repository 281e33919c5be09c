"""Folders behind a URL of any kind that fsspec knows: opened with settings, without secrets in them.

Credentials come from the environment, where each file system looks for its own (AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, ...): settings are printed, logged and committed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import fsspec

from streaming.errors import SnapshotError

_SECRET = re.compile(
    r"secret|password|passphrase|token|credential|connection_string|(^|_)key$", re.IGNORECASE
)
_EXTRAS = {"s3": "s3", "s3a": "s3"}
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
# By default s3fs holds ten parts of 50 MB in memory at once.
_DEFAULTS: dict[str, dict[str, object]] = {"s3": {"max_concurrency": 2}, "s3a": {"max_concurrency": 2}}


class Remote:
    """A folder in a file system, by URL.

    Args:
        url: such as file:///backup, s3://bucket/folder, or a plain path.
        options: of the file system; a value that is JSON (`true`, `5`, `{"a": 1}`) is taken as such.

    Raises:
        SnapshotError: no such file system, its package is missing, or url or options hold a secret.
    """

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        if urlsplit(url).password is not None:
            raise SnapshotError(
                "the URL holds a password; leave it out and put credentials into the environment"
            )
        self.url = url.rstrip("/")
        protocol = url.split("://", maxsplit=1)[0] if "://" in url else "file"
        values = {name: _value(text) for name, text in options.items()}
        _refuse_secrets(values)
        try:
            self.fs, root = fsspec.url_to_fs(
                url, skip_instance_cache=True, **(_DEFAULTS.get(protocol, {}) | values)
            )
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            raise SnapshotError(
                f"{self.url}: {protocol}:// needs another package: "
                + (f"install the extra {extra!r} (pip install 'headrace[{extra}]')" if extra else str(error))
            ) from error
        except (ValueError, TypeError) as error:
            raise SnapshotError(f"{self.url}: cannot be used: {error}") from error
        self.root = root.rstrip("/")
        self._has_folders = protocol not in _OBJECT_STORES

    def make_folder(self, path: str) -> None:
        """Make a folder; in an object store there are none to make (and s3fs would make a missing bucket)."""
        if self._has_folders:
            self.fs.makedirs(path, exist_ok=True)

    def names(self, path: str) -> list[str]:
        """Names in a folder, in order; none where it does not exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    @contextmanager
    def reaching(self, doing: str) -> Iterator[None]:
        """Turn whatever goes wrong into a SnapshotError that says where, and at what."""
        try:
            yield
        except SnapshotError:
            raise
        except Exception as error:  # every file system has errors of its own, with no common base
            raise SnapshotError(f"{self.url}: could not {doing}: {type(error).__name__}: {error}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _refuse_secrets(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if _SECRET.search(name):
            raise SnapshotError(
                f"snapshots.options.{name} looks like a secret; leave it out and put credentials into the "
                "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...)"
            )
        if isinstance(value, dict):
            _refuse_secrets(value)
