"""The files of the page, read once: bytes, compressed bytes and names that change with the content.

Everything but the page itself stands under a folder named by a digest of all files (`/page/<digest>/…`), so that it
may be kept for a year, and a page never meets scripts of another version.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
PAGE, BELOW = "/", "/page"  # free of credentials: there is no data in them

_DIGEST = b"{digest}"  # stands in the page for the name of the folder
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent.

    Attributes:
        tag: entity tag of `body`; `packed`, its gzip form, has the same with `-gz` within the quotes.
    """

    media_type: str
    body: bytes
    packed: bytes
    tag: str

    @property
    def packed_tag(self) -> str:
        """Entity tag of the compressed form."""
        return f'{self.tag[:-1]}-gz"'


@dataclass(frozen=True)
class Assets:
    """All files by their path below the folder, and the digest that stands in their addresses."""

    files: dict[str, Asset]
    digest: str


def load(folder: Path = FOLDER) -> Assets:
    """Read the folder.

    Raises:
        ValueError: a file is of a kind that is not sent.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    everything = hashlib.sha256()
    for name, content in contents.items():
        everything.update(name.encode() + b"\0" + content + b"\0")
    digest = everything.hexdigest()[:12]
    contents[INDEX] = contents[INDEX].replace(_DIGEST, digest.encode())
    return Assets({name: _asset(name, content) for name, content in contents.items()}, digest)


def _asset(name: str, content: bytes) -> Asset:
    media_type = _TYPES.get(Path(name).suffix)
    if media_type is None:
        raise ValueError(
            f"{name}: expected one of {', '.join(_TYPES)}; add its media type to serving/page/assets.py"
        )
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    return Asset(media_type, content, gzip.compress(content, 9, mtime=0), tag)
