"""Write frames in the published layout of OC22 S2EF-total: LMDB files of pickled ``torch_geometric`` objects.

OC22 was published from PyG 1, whose ``Data`` kept its fields in the instance dictionary; PyG 2 moved them into a
storage object, and in June 2024 the upstream writer renamed ``y`` and ``force`` (fairchem#726). All three generations
circulate, so each can be written. Tensors pickle as the published ones do: ``torch._utils._rebuild_tensor_v2`` around
``torch.storage._load_from_bytes``.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lmdb

from jmp_data.demo.frames import LabelledFrame

PygGeneration = Literal["pyg1", "pyg2", "pyg2_renamed"]
INNER_FOLDER = Path("s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total")
FRAMES_PER_FILE = 50_000
_MAP_SIZE = 1 << 36  # an upper bound: LMDB files grow as pages are used


def write_oc22_split(
    directory: Path,
    split: str,
    frames: Sequence[LabelledFrame],
    *,
    frames_per_file: int = FRAMES_PER_FILE,
    generations: Sequence[PygGeneration] = ("pyg1",),
) -> list[Path]:
    """Write one split as ``data.NNNN.lmdb`` files, each with the ``.txt`` list that marks clean slabs.

    Args:
        directory: the folder into which the archive would have been unpacked.
        split: ``train``, ``val_id`` or ``val_ood``.
        frames: written in this order.
        frames_per_file: frames in each LMDB.
        generations: pickle generation of each file in turn, cycled.

    Returns:
        The LMDB files written.
    """
    folder = directory / INNER_FOLDER / split
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, start in enumerate(range(0, len(frames), frames_per_file)):
        chunk = frames[start : start + frames_per_file]
        path = folder / f"data.{number:04d}.lmdb"
        write_lmdb(path, [pickle_record(frame, generations[number % len(generations)]) for frame in chunk])
        path.with_suffix(".txt").write_text("".join(map(_format_entry, chunk)))
        written.append(path)
    return written


def write_lmdb(path: Path, values: Sequence[bytes], *, write_length: bool = True) -> None:
    """Write values under the keys ``0 .. n-1`` of a single-file LMDB, with the ``length`` key that OCP adds.

    Args:
        path: the LMDB file; no lock file is left beside it.
        values: one pickled record each.
        write_length: older files lack the ``length`` key.
    """
    environment = lmdb.open(str(path), map_size=_MAP_SIZE, subdir=False, lock=False, meminit=False)
    with environment, environment.begin(write=True) as transaction:
        for index, value in enumerate(values):
            transaction.put(str(index).encode(), value)
        if write_length:
            transaction.put(b"length", pickle.dumps(len(values), protocol=-1))


def pickle_record(frame: LabelledFrame, generation: PygGeneration = "pyg1") -> bytes:
    """Pickle one frame as the ``torch_geometric.data.data.Data`` of the given generation.

    Args:
        frame: the frame.
        generation: ``pyg1`` keeps the fields in ``__dict__``; ``pyg2`` in a storage object; ``pyg2_renamed`` calls the
            labels ``energy`` and ``forces``.

    Returns:
        The pickle.
    """
    from torch_geometric.data import Data  # seconds to import, and only this writer needs it

    fields = _record_fields(frame)
    if generation == "pyg1":
        data = Data.__new__(Data)  # without __init__ there is no storage object, as in PyG 1
        object.__getattribute__(data, "__dict__").update(fields)
    else:
        if generation == "pyg2_renamed":
            fields["energy"], fields["forces"] = fields.pop("y"), fields.pop("force")
        data = Data(**{name: value for name, value in fields.items() if value is not None})
    return pickle.dumps(data, protocol=4)


def _record_fields(frame: LabelledFrame) -> dict[str, Any]:
    import torch

    return {
        **dict.fromkeys(("x", "edge_index", "edge_attr")),
        "y": float(frame.energy),
        "pos": torch.tensor(frame.positions, dtype=torch.float32),
        **dict.fromkeys(("normal", "face")),
        "cell": torch.tensor(frame.cell, dtype=torch.float32).reshape(1, 3, 3),
        "atomic_numbers": torch.tensor(frame.atomic_numbers, dtype=torch.float32),
        "natoms": len(frame.atomic_numbers),
        "force": torch.tensor(frame.forces, dtype=torch.float32),
        "fixed": torch.tensor(frame.fixed, dtype=torch.float32),
        "tags": torch.tensor(frame.tags, dtype=torch.int64),
        "sid": frame.system,
        "fid": frame.frame,
        "id": f"{frame.system}_{frame.frame}",
        "nads": frame.adsorbates,
        "oc22": 1,
    }


def _format_entry(frame: LabelledFrame) -> str:
    kind = "adslab" if frame.adsorbates else "clean"
    return f"{frame.system}_{frame.frame},{kind}\n"
