"""The text encoder that is due now: the promoted bundle's own, or the one in the settings where it has none.

Made for the catalogue actor, which asks before every batch of texts. Importing this loads no torch.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import EncoderError
from training.registry import Registry

if TYPE_CHECKING:
    from training.encoder import TextEncoder

log = logging.getLogger("headrace.training")
FOLDER = "encoder"  # inside a bundle


@dataclass(frozen=True)
class SavedEncoder:
    """A text encoder on disk in Hugging Face layout, with what its vectors depend on."""

    folder: Path
    fingerprint: str
    pooling: str


class CurrentEncoder:
    """Call it for the encoder that is due; the same object as before unless another one was promoted.

    Args:
        models_dir: the registry's folder. name: the settings' ``text_encoder``. pooling: their ``encoder_pooling``.
    """

    def __init__(self, models_dir: Path, name: str, pooling: str = "auto") -> None:
        self._registry, self._name, self._pooling = Registry(models_dir), name, pooling
        self._encoder: TextEncoder | None = None
        self._loaded: str | None = None  # name or folder
        self._looked_at: str | None = None  # version

    def __call__(self) -> TextEncoder:
        """One small file read; loading takes about a second, on one thread since it runs beside serving.

        Raises:
            EncoderError: the settings' encoder cannot be loaded. A bundle's that cannot is logged, and the one of
                before stays: a replica leaves vectors of another encoder alone.
        """
        version = self._registry.current()
        if self._encoder is not None and version == self._looked_at:
            return self._encoder
        try:
            self._follow(version)
        except (EncoderError, OSError, ValueError):
            if version is None:
                raise
            log.exception(
                "%s: its text encoder cannot be loaded; new items wait for another version", version
            )
            if self._encoder is None:
                self._follow(None)
        self._looked_at = version
        if self._encoder is None:
            raise AssertionError("loaded above")
        return self._encoder

    def _follow(self, version: str | None) -> None:
        import torch

        from training.encoder import load_text_encoder

        own = encoder_of(self._registry.path(version)) if version else None
        source, pooling = (str(own.folder), own.pooling) if own else (self._name, self._pooling)
        if source == self._loaded:
            return
        torch.set_num_threads(1)
        encoder = load_text_encoder(source, pooling)
        if own and encoder.fingerprint != own.fingerprint:
            raise EncoderError(
                f"the text encoder in {source} has fingerprint {encoder.fingerprint}, its bundle says "
                f"{own.fingerprint}: it is damaged; promote another version"
            )
        self._encoder, self._loaded = encoder, source


def encoder_of(bundle: Path) -> SavedEncoder | None:
    """The text encoder that a bundle brings along; None where it was trained on the settings' encoder.

    Raises:
        OSError, ValueError: the bundle's config.json cannot be read.
    """
    said = json.loads((bundle / "config.json").read_text()).get("text_encoder")
    return SavedEncoder(bundle / FOLDER, said["fingerprint"], said["pooling"]) if said else None
