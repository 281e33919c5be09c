from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.synthetic import settings
from tests.training.tiny_text import tiny_bert, tiny_llama
from training.errors import EncoderError
from training.mlm import pretrain
from training.text_tower import load_tower

# which word follows which is learnable; which one a text begins with is not
TEXTS = [f"item w{i % 8} w{i % 8 + 8} w{i % 8 + 16} w{i % 8 + 24}" for i in range(64)] + [""]


def test_the_loss_falls_and_the_tower_is_another(tmp_path: Path) -> None:
    chosen = settings(finetune="top-n", finetune_layers=1, mlm_epochs=60, mlm_lr=0.01)
    tower = load_tower(tiny_bert(tmp_path), chosen)
    before, drawn = tower.encode(TEXTS[:8]), torch.random.get_rng_state()
    losses = pretrain(tower, TEXTS, chosen)
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert not np.allclose(tower.encode(TEXTS[:8]), before, atol=1e-2)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    trained = {name for name, value in tower.named_parameters() if value.requires_grad}
    assert trained
    assert all(name.startswith("transformer.encoder.layer.2.") for name in trained)


def test_lora_gets_the_pretrained_weights_below_it(tmp_path: Path) -> None:
    chosen = settings(finetune="lora", mlm_epochs=2, mlm_lr=0.01)
    tower = load_tower(tiny_bert(tmp_path), chosen)
    before = tower.encode(TEXTS[:8])
    adapters = {name: value.clone() for name, value in tower.state_dict().items() if "lora_" in name}
    pretrain(tower, TEXTS, chosen)
    assert not np.allclose(tower.encode(TEXTS[:8]), before, atol=1e-3)
    after = tower.state_dict()
    assert all(torch.equal(after[name], value) for name, value in adapters.items())
    assert all(value.requires_grad == ("lora_" in name) for name, value in tower.named_parameters())


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    chosen = settings(finetune="full", mlm_epochs=3)
    with pytest.raises(
        EncoderError, match="mlm_epochs = 3 needs an encoder with a mask token; llama has none"
    ):
        pretrain(load_tower(tiny_llama(tmp_path), chosen), TEXTS, chosen)
