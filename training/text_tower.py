"""The text encoder as a part that is trained: item text to vectors with a gradient.

`TextTower` wraps the transformer that `training.encoder` runs frozen, and both pool alike, so a vector from the
catalogue's cache and one computed in a step are the same function of the same weights. Dropout is off for that reason
too, which also keeps the loss independent of the number of workers.

What is trained: ``top-n`` the last layers and the final norm (Howard and Ruder 2018, arXiv:1801.06146, thaw from the
top), ``lora`` low-rank updates of the linear layers (Hu et al. 2021, arXiv:2106.09685, by the PEFT library),
``full`` everything. A pooling head that the vectors do not pass through is never trained.

Per step only the texts of the batch's items are encoded; every other item stands on the vector it had at the last
refresh. With W workers each encodes 1/W of the step's texts and they exchange vectors and gradients, so the gradient
is exactly that of one worker. Cost per step at the defaults (256 titles, MiniLM): forward and backward of 256 short
texts, some seconds on one CPU core and some 20 ms on a GPU, several hundred times what the rest of a step costs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from training.config import TrainingSettings
from training.encoder import encode_sorted, load_text_encoder, pool, tokenize
from training.errors import EncoderError
from training.items import ItemTable

_SPARE_TEXT = "-"  # where a step has no text, so that every weight is in every worker's graph
_FINAL_NORMS = {"norm", "ln_f", "final_layer_norm", "final_norm", "final_layernorm"}


@dataclass(frozen=True)
class LiveTexts:
    """The texts of one step: K rows of the item table, and this worker's share of their tokens.

    Attributes:
        rows: (K,) int64, ascending, the same on every worker.
        tokens: of this worker's S texts: ``input_ids`` and ``attention_mask`` (S, T). Text j of worker r belongs to
            row number j·W + r; what goes beyond K is filling.
    """

    rows: Tensor
    tokens: dict[str, Tensor]


class TextTower(nn.Module):
    """A transformer, its tokenizer and which of its parameters are trained.

    Args:
        tokenizer, model: of the ``transformers`` library.
        settings: mode, layers, LoRA.
        pooling: ``"mean"`` or ``"last"``.

    Raises:
        EncoderError: the mode asks for what the model or the installation does not have.
    """

    def __init__(self, tokenizer: Any, model: Any, settings: TrainingSettings, pooling: str) -> None:
        super().__init__()
        self.tokenizer, self.pooling, self.mode = tokenizer, pooling, settings.finetune
        self.fingerprint: str | None = None  # of the weights as loaded
        self.dim = int(model.config.hidden_size)
        self._plain = [model]  # in a list: the transformer below is the registered module
        for parameter in model.parameters():
            parameter.requires_grad_(settings.finetune == "full")
        if settings.finetune == "top-n":
            _thaw_top(model, settings.finetune_layers)
        self.transformer: Any = _with_lora(model, settings) if settings.finetune == "lora" else model
        for name, parameter in self.named_parameters():
            if ".pooler." in name:
                parameter.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TextTower:
        """Dropout stays off whatever ``mode`` (see the module's docstring)."""
        super().train(False)
        return self

    @property
    def plain(self) -> Any:
        """The transformer itself, inside what LoRA puts around it."""
        return self._plain[0]

    def forward(self, tokens: dict[str, Tensor], words: Tensor | None = None) -> Tensor:
        """Encode S tokenised texts: ``input_ids`` and ``attention_mask`` (S, T) give (S, D), of unit length.

        With ``words`` (S, T, H) these stand for the embeddings of the tokens.
        """
        named = dict(tokens)
        if words is not None:
            named = {"inputs_embeds": words, "attention_mask": named["attention_mask"]}
        hidden = self.transformer(**named).last_hidden_state.float()  # (S, T, D)
        vectors: Tensor = pool(hidden, tokens["attention_mask"], self.pooling)
        return vectors

    def words(self, live: LiveTexts) -> Tensor:
        """(S, T, H) embeddings of the tokens of this worker's texts, to be asked for a gradient."""
        embedded: Tensor = self.plain.get_input_embeddings()(live.tokens["input_ids"])
        return embedded if embedded.requires_grad else embedded.requires_grad_(True)

    def live_vectors(self, live: LiveTexts, words: Tensor | None = None) -> Tensor:
        """(K, D) vectors of ``live.rows`` with gradient, on every worker (a collective with more than one).

        With ``words``, see `words`, these are encoded.
        """
        mine: Tensor = self(live.tokens, words)
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return mine[: max(len(live.rows), 1)]
        from torch.distributed.nn.functional import all_gather

        shares: Tensor = torch.stack(all_gather(mine), dim=1)  # type: ignore[no-untyped-call]  # (S, W, D)
        return shares.flatten(0, 1)[: max(len(live.rows), 1)]

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N,) texts to (N, D) float32, unit length; an empty text gives zeros."""
        return encode_sorted(texts, self.dim, lambda some: self(self.tokens(some)).cpu().numpy())

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Tokens of non-empty texts on this tower's device."""
        device = next(self.parameters()).device
        return {name: tensor.to(device) for name, tensor in tokenize(self.tokenizer, texts).items()}

    def save(self, folder: Path) -> None:
        """Write the tuned encoder in Hugging Face layout; LoRA updates are merged into the weights they belong to."""
        model = self.transformer
        if self.mode == "lora":
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_tower(source: str, settings: TrainingSettings, pooling: str | None = None) -> TextTower:
    """The encoder of that name or folder as a tower; ``pooling`` None = as the settings say.

    Raises:
        EncoderError: it cannot be loaded, or not be trained in the way that is set.
    """
    encoder = load_text_encoder(source, pooling or settings.encoder_pooling)
    # `from_pretrained` may hand out tensors that are mapped from a file: training needs its own.
    model = encoder.model
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    tower = TextTower(encoder.tokenizer, model, settings, encoder.pooling)
    tower.fingerprint = encoder.fingerprint
    return tower


def encode_table(tower: TextTower, table: ItemTable, texts: Sequence[str]) -> ItemTable:
    """The same items with ``tower``'s vectors of ``texts``, one per row of ``table``; one process, no Ray.

    Raises:
        ValueError: the number of texts is not that of the rows.
    """
    if len(texts) != len(table):
        raise ValueError(f"expected one text per row of the table, {len(table)}; got {len(texts)}")
    return replace(table, text=tower.encode(texts))


def table_texts(table: ItemTable, hashes: NDArray[np.uint64], texts: Sequence[str]) -> list[str]:
    """Texts for the rows of ``table`` from those of (M,) item hashes; "" for a row that has none."""
    known = dict(zip(hashes.tolist(), texts, strict=True))
    return [known.get(item, "") for item in table.hashes.tolist()]


def live_texts(
    tower: TextTower, texts: Sequence[str], rows: NDArray[np.int64], rank: int = 0, world: int = 1
) -> LiveTexts:
    """The step's texts, tokenised for one worker of ``world``.

    Args:
        tower: gives tokens. texts: of every row of the item table.
        rows: (K,) distinct rows with a text, the same on every worker.
        rank, world: this worker and their number.
    """
    names = [texts[row] for row in rows] or [_SPARE_TEXT]
    size = -(-len(names) // world) * world  # every worker encodes as many
    share = [names[i % len(names)] for i in range(rank, size, world)]
    device = next(tower.parameters()).device
    return LiveTexts(torch.from_numpy(rows).to(device), tower.tokens(share))


def put_live(text: Tensor, used: Tensor | None, live: LiveTexts, vectors: Tensor) -> Tensor:
    """Replace cached vectors by live ones.

    Args:
        text: (n, D) cached vectors of the items in use; used: (n,) their rows, ascending; None = all rows in order.
        live, vectors: rows and their (K, D) vectors; rows that are not in use are left out.
    """
    at, vectors = live.rows, vectors[: len(live.rows)]
    if used is not None:
        at = torch.searchsorted(used, live.rows).clamp(max=len(used) - 1)
        present = used[at] == live.rows
        at, vectors = at[present], vectors[present]
    return text.index_copy(0, at, vectors.to(text.dtype))


def _layers(model: Any) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise EncoderError(
            f"training.finetune = 'top-n' finds no list of layers in {type(model).__name__}; use 'lora' or 'full'"
        )
    return max(lists, key=len)


def _thaw_top(model: Any, count: int) -> None:
    layers = _layers(model)
    if count > len(layers):
        raise EncoderError(
            f"training.finetune_layers must be at most the encoder's {len(layers)} layers; got {count}"
        )
    norms: Iterator[nn.Module] = (child for name, child in model.named_children() if name in _FINAL_NORMS)
    for part in [*list(layers)[-count:], *norms]:
        for parameter in part.parameters():
            parameter.requires_grad_(True)


def _with_lora(model: Any, settings: TrainingSettings) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise EncoderError(
            "training.finetune = 'lora' needs the PEFT library: run `pip install 'headrace[lora]'`, or set "
            "'top-n' or 'full'"
        ) from error
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=list(settings.lora_targets) or "all-linear",
        exclude_modules=r".*pooler.*" if hasattr(model, "pooler") else None,
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise EncoderError(f"training.lora_targets = {list(settings.lora_targets)}: {error}") from error
