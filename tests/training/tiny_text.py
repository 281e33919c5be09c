"""Language models small enough for tests, with random weights, as folders in Hugging Face layout."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(40)] + ["item"]
DIM = 16


def _tokenizer(**special: str) -> Any:
    names = ["[PAD]", "[UNK]", "[MASK]", "[EOS]", *WORDS, "-"]
    words = Tokenizer(WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **special)


def tiny_bert(folder: Path, seed: int = 0) -> str:
    """Three layers, width 16; a name for `training.text_encoder`."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64, hidden_size=DIM, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    _tokenizer(pad_token="[PAD]", mask_token="[MASK]").save_pretrained(folder)
    return str(folder)


def tiny_llama(folder: Path, seed: int = 0) -> str:
    """Decoder-only: two layers, width 16, no padding token."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
    )
    LlamaModel(config).save_pretrained(folder)
    _tokenizer(eos_token="[EOS]").save_pretrained(folder)
    return str(folder)
