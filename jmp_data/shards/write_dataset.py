"""The small way in: any iterable of `Structure` becomes a data set folder."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jmp_data.errors import InvalidStructureError, ManifestError
from jmp_data.references.accumulate import StatisticsAccumulator
from jmp_data.references.fit import fit_references
from jmp_data.schema import Block, Field, Schema, Structure
from jmp_data.schema.fields import STANDARD_TARGETS
from jmp_data.shards.assemble import assemble
from jmp_data.shards.dataset import ShardDataset, open_dataset
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.layout import Format, Layout
from jmp_data.shards.manifest import MANIFEST_NAME
from jmp_data.shards.staging import BUILD_FOLDER, PartRecord, finish_part, stage_shards

_CHUNK = 1024
_STORED_KINDS = "iufb"


def infer_schema(structures: Iterable[Structure]) -> Schema:
    """The columns that hold every target of the given structures.

    Energy, forces and stress are the standard fields. Another target is atom-level where its first axis is `natoms`
    in all structures and not constant, structure-level otherwise. Text is left out, with a warning.

    Raises:
        InvalidStructureError: a target changes its shape between structures.
    """
    shapes: dict[str, set[tuple[int, tuple[int, ...]]]] = {}
    dtypes: dict[str, np.dtype[np.generic]] = {}
    standard, left_out = set(), set()
    for structure in structures:
        if structure.energy is not None:
            standard.add("energy")
        if structure.forces is not None:
            standard.add("forces")
        for name, value in structure.targets.items():
            if value.dtype.kind not in _STORED_KINDS:
                left_out.add(name)
                continue
            shapes.setdefault(name, set()).add((structure.natoms, value.shape))
            dtypes[name] = np.result_type(dtypes.get(name, value.dtype), value.dtype)
    if left_out:
        warnings.warn(f"shards hold real numbers: {', '.join(sorted(left_out))} not written", stacklevel=3)
    fields = [STANDARD_TARGETS[name] for name in ("energy", "forces") if name in standard]
    for name, seen in shapes.items():
        if name in STANDARD_TARGETS:
            fields.append(STANDARD_TARGETS[name])
            continue
        full, trailing = {shape for _, shape in seen}, {shape[1:] for _, shape in seen}
        per_atom = all(shape[:1] == (natoms,) for natoms, shape in seen)
        if per_atom and (len(full) > 1 or len(seen) == 1) and len(trailing) == 1:
            fields.append(Field(name, "atom", dtypes[name].name, trailing.pop()))
        elif len(full) == 1:
            fields.append(Field(name, "structure", dtypes[name].name, full.pop()))
        else:
            raise InvalidStructureError(f"target {name} has shapes {sorted(full)}; give a schema", "shape")
    return Schema(tuple(fields))


def _chunks(structures: Iterator[Structure], schema: Schema, total: StatisticsAccumulator) -> Iterator[Block]:
    while chunk := list(itertools.islice(structures, _CHUNK)):
        block = Block.from_structures(chunk, schema)
        total.add(block)
        yield block


def write_dataset(
    structures: Iterable[Structure],
    path: str | Path,
    *,
    format: Format = "zarr",
    name: str | None = None,
    schema: Schema | None = None,
    graphs: LayerSettings | None = None,
) -> ShardDataset:
    """Write structures as a finished data set.

    Args:
        structures: any iterable; streamed, unless the schema must be inferred from a generator.
        path: new folder, by habit `<data set>/<split>`.
        format: zarr or webdataset.
        name: data set name; the parent folder's name by default.
        schema: columns; inferred from the structures by default.
        graphs: radius graphs to store as well; none by default.

    Raises:
        ManifestError: the folder already holds a data set.
        InvalidStructureError: structures do not fit one schema.
    """
    folder = Path(path)
    if (folder / MANIFEST_NAME).exists():
        raise ManifestError(f"{folder}: already holds a data set; choose another folder or delete it")
    if schema is None:
        structures = list(structures)
        schema = infer_schema(structures)
    layout, total = Layout(), StatisticsAccumulator()
    blocks = _chunks(iter(structures), schema, total)
    shards = stage_shards(folder, "all", blocks, schema=schema, layout=layout, format=format, graphs=graphs)
    record = PartRecord("all", shards, statistics=total.to_json())
    finish_part(folder, record)
    facts = {
        "records_in": sum(shard.structures for shard in shards),
        "references": fit_references(total, fitted_on=folder.name),
        "statistics": total.summary(),
        "units": {"energy": "eV", "length": "Å", "constants": "none applied"},
    }
    label = name if name is not None else folder.absolute().parent.name
    assemble(
        folder,
        [record],
        name=label,
        split=folder.name,
        schema=schema,
        layout=layout,
        format=format,
        facts=facts,
        graphs=graphs,
    )
    shutil.rmtree(folder / BUILD_FOLDER)
    return open_dataset(folder)
