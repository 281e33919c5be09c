"""Fixtures that cost seconds, once for the whole run: a real broker and a real Ray."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Bootstrap servers of a real Kafka-compatible broker."""
    from streaming.broker import EmbeddedBroker

    with EmbeddedBroker() as running:
        yield running.bootstrap_servers


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray with more logical CPUs than there are, and its dashboard (Ray Train polls that)."""
    from services.local_ray import start_ray, stop_ray

    start_ray(tmp_path_factory.mktemp("ray"))
    yield
    stop_ray()
