"""Named actors: all that Headrace runs in Ray beside Serve's replicas, in one namespace."""

from typing import Any

import ray

from streaming import logs
from streaming.logs import LogSettings

NAMESPACE = "headrace"


def named_actors() -> list[str]:
    """Names of the pipeline's living actors."""
    return [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]


def kill(name: str) -> bool:
    """Kill an actor; False where there is none of that name."""
    try:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    except ValueError:  # it ended by itself in between
        return False
    return True


def logged(cls: type, settings: LogSettings, role: str) -> type:
    """The class, whose instances first set up the logs of their process."""

    class Logged(cls):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any) -> None:
            logs.configure(settings, role)
            super().__init__(*arguments)

    Logged.__name__ = Logged.__qualname__ = cls.__name__  # as Ray shows it
    return Logged
