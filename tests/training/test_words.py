"""Adversarial training on word embeddings: texts are misread so that the next item is lost."""

import numpy as np
import pytest
import torch

from tests.training.synthetic import ITEMS, settings, window_table
from tests.training.tiny_text import DIM, tiny_bert
from training.config import AdversarialConfig
from training.data import cut, from_window, make_batch
from training.losses import Objective
from training.model import SequenceModel
from training.text_tower import live_texts, load_tower

TEXTS = [f"item w{number}" for number in range(40)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("mode", ["top-n", "full"])
def test_misread_words_raise_the_loss_and_the_tower_learns_from_them(source: str, mode: str) -> None:
    chosen = settings(finetune=mode, finetune_layers=1)
    tower = load_tower(source, chosen)
    torch.manual_seed(0)
    model = SequenceModel(chosen.model.model_copy(update={"text_dim": DIM}))
    rows = [(start + np.arange(6)) % 40 for start in range(0, 40, 5)]
    sequences = from_window(window_table([{"items": [int(ITEMS[i]) for i in row]} for row in rows]))
    order = np.argsort(ITEMS)
    places = np.searchsorted(ITEMS[order], sequences.items)
    batch = make_batch(sequences, places, cut(sequences, 8))
    text, slots = torch.from_numpy(tower.encode([TEXTS[i] for i in order])), torch.full((40,), -1)

    def losses(words: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = AdversarialConfig(epsilon=0.0, words=words, share=0.5, start_step=0)
        task = Objective(model, config, tower=tower).train()
        live = live_texts(tower, [TEXTS[i] for i in order], np.arange(40))
        return task(batch, text, slots, strength=1.0, live=live)

    _, clean, still = losses(0.0)
    mixed, same, misread = losses(0.5)
    assert torch.allclose(clean, same)
    assert torch.allclose(still, clean)
    assert misread > clean * 1.001
    assert torch.allclose(mixed, 0.5 * clean + 0.5 * misread)
    mixed.backward()
    trained = [value for value in tower.parameters() if value.requires_grad]
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in trained)
