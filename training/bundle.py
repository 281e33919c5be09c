"""A model version on disk: everything serving needs, nothing unpickled, refused if a byte has changed.

`models/<version>/`: `model.safetensors` (weights), `items.parquet` (id, hash, slot, popularity, unit vector),
`config.json` (model shape, event types, format), `eval.json` (every number the gate looked at), `lineage.json`
(windows, parent, code version, counts), `manifest.json` (sha256 of the others). Where the text encoder was tuned
there is `encoder/` too, in Hugging Face layout, and `config.json` says which fingerprint its vectors carry; where the
catalogue is large, `index.faiss`, over the items that can be recommended (`training.item_index`). Written
to a temporary folder and renamed, so a bundle is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from training.config import ModelConfig
from training.current_encoder import FOLDER, SavedEncoder, encoder_of
from training.errors import BundleError
from training.item_index import FILE as INDEX
from training.item_index import write_index
from training.items import ItemTable
from training.model import SequenceModel

FORMAT = 2
_FILES = ("model.safetensors", "items.parquet", "config.json", "eval.json", "lineage.json")


@dataclass(frozen=True)
class Bundle:
    """A loaded version.

    Items the catalogue knows, ordered by hash ascending (N of them), can be recommended:
    ``item_ids`` N str, ``item_hashes`` (N,) uint64, ``item_slots`` (N,) int64 (-1 = text alone),
    ``item_vectors`` (N, d) float32 of unit length, ``popularity`` (N,) float32 shares of recency-decayed counts.
    The model's forward accepts ``item_vectors`` as they are: it does not depend on their norm.

    Items seen in events that the catalogue does not know have no name to recommend, but they are part of histories:
    ``history_hashes`` (M,) uint64, ``history_slots`` (M,) int64, ``history_vectors`` (M, d) float32.
    """

    version: str
    path: Path
    config: ModelConfig
    model: SequenceModel
    item_ids: list[str]
    item_hashes: NDArray[np.uint64]
    item_slots: NDArray[np.int64]
    item_vectors: NDArray[np.float32]
    popularity: NDArray[np.float32]
    history_hashes: NDArray[np.uint64]
    history_slots: NDArray[np.int64]
    history_vectors: NDArray[np.float32]
    event_types: tuple[str, ...]
    eval: dict[str, Any]
    lineage: dict[str, Any]
    encoder: SavedEncoder | None = None  # None: the one in the settings
    index: Path | None = None  # of the items that can be recommended; None: they are searched one by one


@torch.no_grad()
def item_vectors(model: SequenceModel, table: ItemTable, batch: int = 65536) -> NDArray[np.float32]:
    """Unit-length representations (N, d) float32 of every item of ``table``; the model is put in eval mode."""
    model.eval()
    parts = []
    for at in range(0, len(table), batch):
        text = torch.from_numpy(table.text[at : at + batch])
        slots = torch.from_numpy(table.slots[at : at + batch])
        parts.append(torch.nn.functional.normalize(model.item_representations(text, slots), dim=-1))
    joined = torch.cat(parts) if parts else torch.zeros(0, model.config.dim)
    return np.asarray(joined.numpy(), dtype=np.float32)


def save_bundle(
    models_dir: Path,
    version: str,
    *,
    model: SequenceModel,
    table: ItemTable,
    popularity: NDArray[np.float32],
    event_types: Sequence[str],
    evaluation: dict[str, Any],
    lineage: dict[str, Any],
    encoder: SavedEncoder | None = None,
    index_items: int | None = None,
) -> Path:
    """Write ``models_dir/version``; an unfinished earlier attempt at the same version is replaced.

    Args:
        models_dir: the registry's folder; created if missing.
        version: folder name, e.g. ``v0003``.
        model: weights on CPU; left in eval mode.
        table: the items of the round.
        popularity: (len(table),) float32 shares.
        event_types: names of the type codes the model was trained with.
        evaluation: what the gate saw and said.
        lineage: what the version was made from.
        encoder: the text encoder that ``table.text`` is from, copied; None = the one in the settings.
        index_items: from this many items on an index is made; None = never.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    temporary = models_dir / f".{version}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, temporary / "model.safetensors")
    items = _items_table(model, table, popularity)
    pq.write_table(items, temporary / "items.parquet")
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": version,
        "model": model.config.model_dump(),
        "event_types": list(event_types),
    }
    if encoder is not None:
        shutil.copytree(encoder.folder, temporary / FOLDER)
        config["text_encoder"] = {"fingerprint": encoder.fingerprint, "pooling": encoder.pooling}
    if index_items is not None:
        vectors, _, columns = _read_items(items, model.config.dim)
        named = np.array([bool(name) for name in table.ids], dtype=bool)
        recall = write_index(temporary, vectors[named], columns["hash"][named], index_items)
        if recall is not None:
            config["index"] = {"recall@100": round(recall, 4)}
    for name, content in (("config.json", config), ("eval.json", evaluation), ("lineage.json", lineage)):
        (temporary / name).write_text(json.dumps(content, indent=1) + "\n")
    names = [*_FILES, *_optional_files(temporary)]
    manifest = {name: _sha256(temporary / name) for name in names}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    final = models_dir / version
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    return final


def _items_table(model: SequenceModel, table: ItemTable, popularity: NDArray[np.float32]) -> pa.Table:
    vectors = item_vectors(model, table)
    flat = pa.array(vectors.reshape(-1), type=pa.float32())
    return pa.table(
        {
            "id": pa.array(table.ids, type=pa.string()),
            "hash": pa.array(table.hashes, type=pa.uint64()),
            "slot": pa.array(table.slots, type=pa.int64()),
            "popularity": pa.array(popularity, type=pa.float32()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, model.config.dim),
        }
    )


def load_bundle(path: Path) -> Bundle:
    """Read and verify a bundle; the model is in eval mode on CPU.

    Raises:
        BundleError: a file is missing or its checksum differs, or the format is another release's.
    """
    manifest = _read(path / "manifest.json")
    for name in dict.fromkeys([*_FILES, *manifest, *_optional_files(path)]):
        if not (path / name).exists():
            raise BundleError(f"bundle {path} lacks {name}; promote another version, or restore the file")
        seen = _sha256(path / name)
        if seen != manifest.get(name):
            raise BundleError(
                f"bundle {path}: {name} has sha256 {seen[:12]}…, the manifest says "
                f"{str(manifest.get(name))[:12]}…: the file was altered or is damaged; promote another version, "
                "or restore the bundle"
            )
    config = _read(path / "config.json")
    if config.get("format") != FORMAT:
        raise BundleError(
            f"bundle {path} has format {config.get('format')}, this release reads {FORMAT}; train anew"
        )
    try:
        shape = ModelConfig.model_validate(config["model"])
    except ValidationError as error:
        raise BundleError(f"bundle {path}: config.json does not describe a model: {error}") from error
    model = SequenceModel(shape)
    model.load_state_dict(load_file(path / "model.safetensors"))
    items = pq.read_table(path / "items.parquet")
    vectors, ids, columns = _read_items(items, shape.dim)
    named = np.array([bool(name) for name in ids], dtype=bool)
    return Bundle(
        version=str(config["version"]),
        path=path,
        config=shape,
        model=model.eval(),
        item_ids=[name for name in ids if name],
        item_hashes=columns["hash"][named],
        item_slots=columns["slot"][named],
        item_vectors=np.ascontiguousarray(vectors[named]),
        popularity=columns["popularity"][named],
        history_hashes=columns["hash"][~named],
        history_slots=columns["slot"][~named],
        history_vectors=np.ascontiguousarray(vectors[~named]),
        event_types=tuple(config["event_types"]),
        eval=_read(path / "eval.json"),
        lineage=_read(path / "lineage.json"),
        encoder=encoder_of(path),
        index=path / INDEX if (path / INDEX).exists() else None,
    )


def _read_items(items: pa.Table, dim: int) -> tuple[NDArray[np.float32], list[str], dict[str, NDArray[Any]]]:
    """Vectors (N, d), ids, and the other columns."""
    vectors = _column(items, "vector").flatten().to_numpy().reshape(-1, dim)
    columns = {
        name: _column(items, name).to_numpy(zero_copy_only=False) for name in ("hash", "slot", "popularity")
    }
    return vectors, items["id"].to_pylist(), columns


def _optional_files(bundle: Path) -> list[str]:
    """Of the text encoder, and the index, where they are."""
    encoder = sorted(f.relative_to(bundle).as_posix() for f in (bundle / FOLDER).rglob("*") if f.is_file())
    return encoder + [INDEX] * (bundle / INDEX).exists()


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
    return column


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BundleError(f"no model bundle at {path.parent}: {path.name} is missing") from error
    except json.JSONDecodeError as error:
        raise BundleError(f"bundle file {path} is not JSON: {error}; restore the bundle") from error
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
