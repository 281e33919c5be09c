"""Domain-adaptive pre-training: masked-language modelling on the catalogue's own texts, before anything else.

15 % of the tokens are hidden and predicted (Devlin et al. 2019, arXiv:1810.04805, section 3.1), which moves an
encoder towards the words of a catalogue that it was not trained on (Gururangan et al. 2020, arXiv:2004.10964, section
3). The prediction head is thrown away. Cost: about three times that of encoding the texts once, per pass.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch

from training.config import TrainingSettings
from training.encoder import is_decoder_only, tokenize
from training.errors import EncoderError
from training.text_tower import TextTower

log = logging.getLogger("headrace.training")
_BATCH = 32
_WARMUP = 0.1  # share of the steps


def pretrain(tower: TextTower, texts: Sequence[str], settings: TrainingSettings) -> list[float]:
    """Pre-train ``tower`` in place for ``settings.mlm_epochs`` passes.

    All weights move, whatever part of them is trained afterwards. One process; the result follows from
    ``settings.seed``.

    Args:
        tower: not yet part of an engine. texts: of the catalogue; empty ones are left out.
        settings: ``mlm_epochs``, ``mlm_lr``, ``gradient_clip``, ``weight_decay``, ``seed``.

    Returns:
        The mean loss of every pass, nats per hidden token.

    Raises:
        EncoderError: the model is decoder-only, or its tokenizer has no mask token.
    """
    base = tower.plain
    if is_decoder_only(base.config) or tower.tokenizer.mask_token is None:
        raise EncoderError(
            f"training.mlm_epochs = {settings.mlm_epochs} needs an encoder with a mask token; "
            f"{base.config.model_type} has none: set mlm_epochs to 0 or text_encoder to a BERT-like model"
        )
    from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling

    texts = [text for text in texts if text.strip()]
    device = next(tower.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        model = AutoModelForMaskedLM.from_config(base.config).to(device).train()
        model.base_model.load_state_dict(base.state_dict(), strict=False)  # all but the pooler
        hide = DataCollatorForLanguageModeling(tower.tokenizer)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.mlm_lr, weight_decay=settings.weight_decay
        )
        steps = settings.mlm_epochs * math.ceil(len(texts) / _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.mlm_lr, total_steps=max(steps, 2), pct_start=_WARMUP
        )
        losses = []
        for epoch in range(settings.mlm_epochs if texts else 0):
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(texts))
            seen: list[float] = []
            for at in range(0, len(order), _BATCH):
                ids = tokenize(tower.tokenizer, [texts[i] for i in order[at : at + _BATCH]])
                hidden, labels = hide.torch_mask_tokens(ids["input_ids"])
                loss = model(
                    input_ids=hidden.to(device),
                    attention_mask=ids["attention_mask"].to(device),
                    labels=labels.to(device),
                ).loss
                if not torch.isfinite(loss):  # a batch of few short texts may hide no token at all
                    continue
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                seen.append(float(loss.detach()))
            losses.append(float(np.mean(seen)) if seen else math.nan)
            log.info("masked-language pre-training, pass %d: loss %.3f", epoch + 1, losses[-1])
    base.load_state_dict(model.base_model.state_dict(), strict=False)
    return losses
