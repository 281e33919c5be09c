"""The encoder as it serves is the model as it was trained."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from serving.user_encoder import EncoderInput, UserEncoder, buckets
from training.config import ModelConfig
from training.model import SequenceModel
from training.repeats import summed_by_item, time_buckets

ITEMS = 30


def model_of(**shape):
    torch.manual_seed(0)
    model = SequenceModel(
        ModelConfig(dim=16, length=12, text_dim=8, id_capacity=4, num_types=3, **shape)
    ).eval()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(
            weight
        )  # biases and tables begin at zero, and would not be seen
    return model


def vectors_of(dim=16):
    return normalize(torch.randn(ITEMS, dim, generator=torch.Generator().manual_seed(1)), dim=-1).numpy()


def history(length, seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 10**9, length)) + 1_700_000_000_000
    times[: length // 3] = times[0]  # events of one moment
    return EncoderInput(rng.integers(0, ITEMS, length), times, rng.integers(0, 5, length))


def as_trained(model, told, vectors):
    """One history through the module itself."""
    L = min(len(told.rows), model.config.length)
    rows, times = torch.from_numpy(told.rows[-L:])[None], torch.from_numpy(told.times[-L:])[None]
    types, mask = torch.from_numpy(told.types[-L:])[None], torch.ones(1, L, dtype=torch.bool)
    items = torch.from_numpy(vectors)[rows]
    with torch.inference_mode():
        users = model(items, types, times, mask)[:, -1:]
        user = normalize(users[:, 0], dim=-1)[0].numpy()
        if model.repeats is None:
            return user, None
        return user, summed_by_item(told.rows[-L:], model.repeats(users, items, times, mask)[0, 0].numpy())


@pytest.mark.parametrize("shape", [{"blocks": 1}, {"blocks": 3, "heads": 4}, {"repeats": "copied"}], ids=str)
def test_it_says_what_the_model_says_alone_and_in_a_batch(shape):
    model, vectors = model_of(**shape), vectors_of()
    encoder = UserEncoder(model)
    told = [history(length, seed) for seed, length in enumerate([1, 2, 7, 12, 40])]
    together = encoder.encode(told, vectors)
    for place, one in enumerate(told):
        user, copies = as_trained(model, one, vectors)
        alone = encoder.encode([one], vectors)
        assert together.users[place] == pytest.approx(user, abs=1e-5)
        assert alone.users[0] == pytest.approx(user, abs=1e-5)
        if copies is None:
            assert alone.repeats is None
        else:
            for found in (together.repeats[place], alone.repeats[0]):
                assert found[0].tolist() == copies[0].tolist()
                assert found[1] == pytest.approx(copies[1], abs=1e-4)


def test_each_event_left_out_is_the_history_without_it():
    model, vectors = model_of(repeats="copied"), vectors_of()
    encoder, told = UserEncoder(model), history(9, 3)
    without = encoder.without_each(told, vectors)
    for event in range(9):
        rest = EncoderInput(*(np.delete(part, event) for part in (told.rows, told.times, told.types)))
        again = encoder.encode([rest], vectors)
        assert without.users[event] == pytest.approx(again.users[0], abs=1e-5)
        assert without.repeats[event][1] == pytest.approx(again.repeats[0][1], abs=1e-4)


def test_times_fall_into_the_buckets_they_were_trained_in():
    elapsed = np.concatenate([np.arange(-3, 5000, 7), 2 ** np.arange(62), 1000 * 2 ** np.arange(50) - 1])
    assert buckets(elapsed).tolist() == time_buckets(torch.from_numpy(elapsed)).tolist()
