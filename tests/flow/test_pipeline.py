"""All four sources from their archives to batches: every label that reaches a model is the one that was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import numpy as np

import jmp_data
from tests.flow import archives_hdf5 as hdf5
from tests.flow import archives_oc20 as oc20
from tests.flow import archives_oc22 as oc22
from tests.flow.building import build
from tests.flow.truth import Truth

SOURCES = ("oc20", "oc22", "ani1x", "transition1x")


def _write_archives(raw: Path) -> dict[str, list[Truth]]:
    frames = oc20.make_frames(23, seed=0)
    oc20.write_set(raw, "s2ef_train_200K", frames, per_file=10)
    entries = oc22.make_entries(9, seed=1)
    path = oc22.split_folder(raw, "train") / "data.0000.lmdb"
    oc22.write_lmdb(path, [oc22.published_payload(entry) for entry in entries])
    with h5py.File(raw / "ani1x-release.h5", "w") as file:
        hdf5.write_ani1x_group(file, {"C": 2, "H": 6}, 12, 2)
    reaction = hdf5.make_reaction("CH4O", "rxn0001", [6, 1, 1, 1, 1, 8], 1, 3, saddle=5)
    with h5py.File(raw / "Transition1x.h5", "w") as file:
        hdf5.write_reaction(file.create_group("train"), reaction)
    return {
        "oc20": [oc20.truth_of(frame, "train") for frame in frames],
        "oc22": [oc22.truth_of(entry, "train") for entry in entries],
        "ani1x": hdf5.ani1x_truths(raw / "ani1x-release.h5"),
        "transition1x": hdf5.path_truths(reaction, "train"),
    }


def test_from_archives_to_batches(tmp_path: Path) -> None:
    truths = _write_archives(tmp_path / "raw")
    for source in SOURCES:
        build(source, tmp_path / "raw", tmp_path / "out")
    folders = {name: str(tmp_path / "out" / name / "train") for name in SOURCES}
    mixture = jmp_data.Mixture.from_datasets(folders, temperature=2.0)
    mixture.save(str(tmp_path / "mix.yaml"))
    mixture = jmp_data.Mixture.load(str(tmp_path / "mix.yaml"))
    sizes = np.array([len(truths[name]) for name in SOURCES])
    expected = np.sqrt(sizes / sizes.sum())
    np.testing.assert_allclose([mixture.probabilities[name] for name in SOURCES], expected / expected.sum())

    by_key = {name: {truth.key: truth for truth in truths[name]} for name in SOURCES}
    visits: Counter[tuple[int, int]] = Counter()
    loader = jmp_data.StreamLoader(mixture, batch_size=8, seed=0, rank=0, world_size=1, num_workers=0)
    for batch in loader:
        for number in range(batch.num_graphs):
            atoms = slice(int(batch.ptr[number]), int(batch.ptr[number + 1]))
            numbers, positions = batch.atomic_numbers[atoms].numpy(), batch.pos[atoms].numpy()
            name = SOURCES[int(batch.dataset_index[number])]
            truth = by_key[name][numbers.astype(np.uint8).tobytes(), positions.astype(np.float32).tobytes()]
            np.testing.assert_allclose(float(batch.energy[number]), truth.energy, rtol=1e-7)
            np.testing.assert_allclose(batch.forces[atoms].numpy(), truth.forces, rtol=2e-7)
            np.testing.assert_allclose(batch.cell[number].numpy(), truth.cell, rtol=1e-7)
            assert tuple(batch.pbc[number].tolist()) == truth.pbc
            visits[int(batch.dataset_index[number]), int(batch.structure_index[number])] += 1
    assert sum(visits.values()) == mixture.epoch_size
    for index, name in enumerate(SOURCES):
        counts = [visits[index, row] for row in range(len(truths[name]))]
        assert max(counts) - min(counts) <= 1, f"{name}: some structures come more often than others"
        assert min(counts) >= 1
