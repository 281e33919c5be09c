"""What the settings say about texts reaches the catalogue actor."""

import inspect
import pickle

import pytest

from services import actors
from services.settings import make_settings
from streaming.cataloguer import Cataloguer
from training.text_guard import TextGuard


@pytest.mark.parametrize(
    ("said", "guard"),
    [({}, TextGuard()), ({"most_degrees": 5}, TextGuard(most_degrees=5)), ({"enabled": False}, None)],
)
def test_the_actor_gets_the_guard_of_the_settings(tmp_path, monkeypatch, said, guard):
    made = []
    monkeypatch.setattr(actors, "kill_actors", lambda keep: 0)
    monkeypatch.setattr(actors.Actors, "_actor", lambda self, *arguments: made.append(arguments))
    settings = make_settings({"data_dir": str(tmp_path), "training": {"text_guard": said}})
    actors.Actors(settings).start_catalog()
    (_, kind, _, *arguments), *others = made
    assert (kind, others) == (Cataloguer, [])
    given = inspect.signature(Cataloguer).bind(*pickle.loads(pickle.dumps(arguments)))
    assert given.arguments["guard"] == guard
