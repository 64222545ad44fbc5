"""Batches whose graphs come from a stored layer are those whose graphs are searched, to the last edge.

Every data set exists twice, with a layer and without. Both have the same fingerprint, so both streams are in the same
order, and batches can be compared one by one.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from jmp_data import open_dataset, write_dataset
from jmp_data.errors import InvalidStructureError, ShardError
from jmp_data.graphs import (
    GRAPH_NAMES,
    GraphSettings,
    PackedFourGraphs,
    batch_four_graphs,
    pack_four_graphs,
)
from jmp_data.mixture import Mixture, Subset
from jmp_data.schema import Schema
from jmp_data.shards.graph_layer import LayerSettings
from jmp_data.shards.layout import Layout
from jmp_data.stream import StreamLoader, edges, epoch_order, loader, stored_graphs
from tests.graph_structures import far_unwrapped, flat_cell, mixed, molecules, slabs
from tests.jmp_data.graphs.batches import Batch, batches

PERIODIC = GraphSettings(5.0, main=12, a2ee2a=8, qint=4, a2a=60)
MOLECULE = GraphSettings(4.0, main=9, a2ee2a=6, qint=3, a2a=40)
SUBSETS_OF_MAIN = ("main", "a2ee2a", "qint")

# Name → structures; the layers of "mixed" are for PERIODIC and MOLECULE, those of the others for PERIODIC alone.
STRUCTURES = {
    "slabs": lambda: slabs(0, 37),
    "molecules": lambda: molecules(1, 45),
    "mixed": lambda: [*mixed(2, 20), far_unwrapped(), *mixed(3, 17), far_unwrapped()],
}
LAYERS = {
    "all": LayerSettings("all", PERIODIC, PERIODIC),
    "main": LayerSettings("main", PERIODIC, PERIODIC),
    "two": LayerSettings("all", PERIODIC, MOLECULE),
}
IN_WEBDATASET = ("none", "all")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<layer>-<format>/<name>/train`, in blocks of 8 structures and shards of 4 blocks; layer "none" has no graphs."""
    folder = tmp_path_factory.mktemp("stored")
    small = Layout(block_structures=8, block_atoms=256, blocks_per_shard=4)
    kinds = [(layer, "zarr") for layer in ("none", *LAYERS)] + [(layer, "webdataset") for layer in IN_WEBDATASET]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["jmp_data.shards.write_dataset"], "Layout", lambda: small)
        patch.setattr("os.fsync", lambda descriptor: None)  # hundreds of them, seconds on a busy disk
        for name, make in STRUCTURES.items():
            structures = make()
            for layer, format in kinds:
                where = folder / f"{layer}-{format}" / name / "train"
                write_dataset(structures, where, format=format, schema=Schema(), graphs=LAYERS.get(layer))
    return folder


@pytest.fixture(autouse=True)
def small_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chapters, sections and pieces of a few batches, so that small epochs cross many of their borders."""
    monkeypatch.setattr(epoch_order, "CHAPTER_SAMPLES", 24)
    monkeypatch.setattr(loader, "SECTION_SAMPLES", 24)
    monkeypatch.setattr(stored_graphs, "BYTES_AT_ONCE", 20_000)


def mixture(written: Path, layers: dict[str, str], format: str = "zarr", **options: object) -> Mixture:
    """Data set name → which of its layers."""
    paths = {name: written / f"{layer}-{format}" / name / "train" for name, layer in layers.items()}
    return Mixture.from_datasets(paths, **options)


def without_layers(written: Path, layers: dict[str, str], format: str = "zarr", **options: object) -> Mixture:
    return mixture(written, dict.fromkeys(layers, "none"), format, **options)


def assert_same_batches(stream, expected) -> int:
    count = 0
    for batch, other in zip(stream, expected, strict=True):
        assert set(batch.keys()) == set(other.keys())
        for key in other.keys():  # noqa: SIM118 - a Batch is no mapping
            assert torch.equal(torch.nan_to_num(batch[key]), torch.nan_to_num(other[key])), key
            assert batch[key].dtype == other[key].dtype, key
        count += 1
    return count


def refuse_to_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def searched(*_: object, **__: object) -> None:
        raise AssertionError("searched instead of served")

    monkeypatch.setattr(edges, "batch_four_graphs", searched)
    monkeypatch.setattr(stored_graphs, "batch_four_graphs", searched)


@st.composite
def streams(draw: st.DrawFn) -> tuple[dict[str, str], str, dict, dict]:
    """Layers, format, options of the mixture and of the loader."""
    names = draw(st.lists(st.sampled_from(list(STRUCTURES)), min_size=1, max_size=3, unique=True))
    format = draw(st.sampled_from(("zarr", "zarr", "webdataset")))
    kinds = ("none", *LAYERS) if format == "zarr" else IN_WEBDATASET
    layers = {name: draw(st.sampled_from(kinds)) for name in names}
    subsets = {name: Subset(first=draw(st.integers(12, 30))) for name in names if draw(st.booleans())}
    if draw(st.booleans()):
        subsets |= {names[0]: Subset(fraction=draw(st.floats(0.4, 0.9)), seed=draw(st.integers(0, 3)))}
    limit = draw(
        st.one_of(
            st.builds(lambda n: {"batch_size": n}, st.integers(1, 9)),
            st.builds(lambda n: {"max_atoms": n}, st.integers(30, 150)),
            st.builds(lambda n: {"max_edges": n}, st.integers(900, 3000)),
        )
    )
    world_size = draw(st.sampled_from((1, 1, 2, 3)))
    choices: list[object] = ["auto", PERIODIC, MOLECULE, dict.fromkeys(names, PERIODIC)]
    options = {
        **limit,
        "seed": draw(st.integers(0, 5)),
        "world_size": world_size,
        "rank": draw(st.integers(0, world_size - 1)),
        "shuffle": draw(st.booleans()),
        "window_blocks": draw(st.integers(1, 4)),
        "graphs": draw(st.sampled_from(choices[1:] * 2 + choices[:1])),
        "graph_names": draw(st.sampled_from((GRAPH_NAMES, ("main",), ("qint", "main"), ("a2a",), SUBSETS_OF_MAIN))),
        "edge_dropout": draw(st.sampled_from((0.0, 0.0, 0.0, 0.3))),
    }
    return layers, format, {"subsets": subsets}, options


def check_stream(written: Path, stream: tuple[dict[str, str], str, dict, dict], skip: int) -> None:
    layers, format, of_mixture, options = stream
    plain = StreamLoader(without_layers(written, layers, format, **of_mixture), **options)
    expected = list(plain)
    assert_same_batches(StreamLoader(mixture(written, layers, format, **of_mixture), **options), expected)
    skip = min(skip, len(expected))
    plain.set_epoch(0)
    list(itertools.islice(plain, skip))
    resumed = StreamLoader(mixture(written, layers, format, **of_mixture), **options)
    resumed.load_state_dict(json.loads(json.dumps(plain.state_dict())))
    assert_same_batches(resumed, expected[skip:])


@examples(max_examples=20)
@given(streams(), st.integers(0, 12))
def test_served_equals_searched(written: Path, stream: tuple, skip: int) -> None:
    check_stream(written, stream, skip)


@pytest.mark.slow
@examples(max_examples=1500)
@given(streams(), st.integers(0, 12))
def test_served_equals_searched_often(written: Path, stream: tuple, skip: int) -> None:
    check_stream(written, stream, skip)


@pytest.mark.parametrize(
    ("format", "layer", "graph_names"),
    [
        ("zarr", "all", GRAPH_NAMES),
        ("webdataset", "all", ("qint",)),
        ("zarr", "main", SUBSETS_OF_MAIN),
        ("zarr", "main", ("main",)),
    ],
)
def test_a_fitting_layer_is_served_without_a_search(
    written: Path, monkeypatch: pytest.MonkeyPatch, format: str, layer: str, graph_names: tuple
) -> None:
    refuse_to_search(monkeypatch)
    # The same tags, spelled in another way.
    respelled = replace(PERIODIC, qint_tags=(2, 1, 2))
    both = mixture(written, {"slabs": layer, "molecules": layer}, format)
    stream = StreamLoader(both, 8, graphs=respelled, graph_names=graph_names)
    assert sum(batch[f"{graph_names[0]}_edge_index"].shape[1] for batch in stream) > 0


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("all", {"graphs": replace(PERIODIC, cutoff=np.nextafter(5.0, 6.0))}),
        ("all", {"graphs": replace(PERIODIC, main=11)}),
        ("all", {"graphs": replace(PERIODIC, qint_tags=(2,))}),
        ("all", {"graphs": "auto"}),
        ("main", {"graphs": PERIODIC}),
        ("main", {"graphs": PERIODIC, "graph_names": ("a2a",)}),
        ("all", {"graphs": PERIODIC, "edge_dropout": 0.1}),
    ],
    ids=["cutoff", "limit", "tags", "auto", "no a2a", "only a2a", "dropout"],
)
def test_graphs_that_a_layer_does_not_hold_are_searched(written: Path, layer: str, options: dict) -> None:
    stream = StreamLoader(mixture(written, {"slabs": layer}), 8, **options)
    assert stream._stored is None
    assert_same_batches(stream, StreamLoader(without_layers(written, {"slabs": layer}), 8, **options))


def test_a_layer_found_by_other_rules_is_not_served(written: Path) -> None:
    dataset = open_dataset(written / "all-zarr/slabs/train")
    dataset.graph_layer.settings = replace(dataset.graph_layer.settings, rule=0)
    assert StreamLoader(dataset, 8, graphs=PERIODIC)._stored is None


def test_each_kind_of_structure_is_served_where_its_settings_fit(written: Path) -> None:
    """Layer "two" has PERIODIC for periodic structures and MOLECULE for molecules."""
    for graphs, expected in ((PERIODIC, [False, True]), (MOLECULE, [True, False])):
        stream = StreamLoader(mixture(written, {"mixed": "two"}), 8, graphs=graphs)
        assert stream._stored.matches.tolist() == [expected]


def test_stored_beside_not_stored(written: Path) -> None:
    layers = {"slabs": "all", "molecules": "none", "mixed": "all"}
    options = {"batch_size": 6, "graphs": PERIODIC}
    stream = StreamLoader(mixture(written, layers), **options)
    assert stream._stored is not None
    assert_same_batches(stream, StreamLoader(without_layers(written, layers), **options))


def test_workers_serve_the_same(written: Path) -> None:
    layers = {"slabs": "all", "mixed": "none"}
    options = {"batch_size": 5, "graphs": PERIODIC, "window_blocks": 2}
    expected = list(StreamLoader(without_layers(written, layers), **options))
    here = mixture(written, layers)
    assert_same_batches(StreamLoader(here, **options), expected)
    with_workers = StreamLoader(here, **options, num_workers=2)  # data sets that were read here travel all the same
    assert_same_batches(with_workers, expected)
    resumed = StreamLoader(here, **options)
    list(itertools.islice(resumed, 4))
    with_workers.load_state_dict(resumed.state_dict())
    assert_same_batches(with_workers, expected[4:])
    with_workers.close()


def test_layers_are_read_over_fsspec(written: Path) -> None:
    fsspec.filesystem("memory").put(str(written / "all-zarr/slabs/train"), "/stored/slabs/train", recursive=True)
    options = {"batch_size": 5, "graphs": PERIODIC}
    expected = list(StreamLoader(without_layers(written, {"slabs": "all"}), **options))
    remote = Mixture.from_datasets({"slabs": "memory://stored/slabs/train"})
    stream = StreamLoader(remote, **options)
    assert stream._stored is not None
    assert_same_batches(stream, expected)
    over_url = Mixture.from_datasets({"slabs": f"file://{written}/all-zarr/slabs/train"})
    with_workers = StreamLoader(over_url, **options, num_workers=1)
    assert_same_batches(with_workers, expected)
    with_workers.close()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A data set with one flipped byte in the edges of its only block."""
    folder = tmp_path / "slabs/train"
    write_dataset(slabs(0, 30), folder, graphs=LAYERS["all"])
    path = folder / "graphs/source/c/0/0"
    content = bytearray(path.read_bytes())
    content[40] ^= 0x10
    path.write_bytes(content)
    return folder


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_is_an_error_that_names_shard_array_and_block(damaged: Path, num_workers: int) -> None:
    stream = StreamLoader(damaged, 8, graphs=PERIODIC, num_workers=num_workers)
    with pytest.raises(ShardError, match=r"slabs/train: shard 0, array graphs/source, block 0"):
        list(stream)
    stream.close()


def test_damage_does_not_matter_to_those_who_do_not_read_the_layer(damaged: Path) -> None:
    assert len(list(StreamLoader(damaged, 8))) == 4
    assert len(list(StreamLoader(damaged, 8, graphs=MOLECULE))) == 4


def test_a_missing_layer_file_is_named(damaged: Path) -> None:
    (damaged / "graphs/membership/c/0/0").unlink()
    with pytest.raises(ShardError, match="graphs/membership/c/0/0: file is missing"):
        list(StreamLoader(damaged, 8, graphs=PERIODIC))


def test_a_structure_without_any_graph_is_the_error_that_a_search_gives(tmp_path: Path) -> None:
    dataset = write_dataset([*slabs(0, 3), flat_cell()], tmp_path / "x/train", schema=Schema(), graphs=LAYERS["all"])
    for edge_dropout in (0.0, 0.1):
        with pytest.raises(InvalidStructureError, match="no volume"):
            list(StreamLoader(dataset, 4, graphs=PERIODIC, edge_dropout=edge_dropout))


def arrays_of(batch: Batch, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """What a loader hands over: geometry, and the columns of the structures that are stored."""
    of_stored = np.repeat(chosen, batch.natoms)
    graphs = batch_four_graphs(
        batch.positions[of_stored], batch.cell[chosen], batch.pbc[chosen], batch.natoms[chosen], batch.tags[of_stored],
        [s for s, c in zip(batch.settings, chosen, strict=True) if c],
    )  # fmt: skip
    packed = pack_four_graphs(graphs, batch.natoms[chosen])
    return {
        "pos": batch.positions, "cell": batch.cell, "pbc": batch.pbc, "natoms": batch.natoms, "tags": batch.tags,
        "stored": chosen, **{f"stored_{name}": column for name, column in vars(packed).items()},
    }  # fmt: skip


def check_serving(batch: Batch, chosen: list[bool], names: tuple[str, ...]) -> None:
    arrays = arrays_of(batch, np.array(chosen[: len(batch.natoms)]))
    expected = batch_four_graphs(*batch.geometry, batch.tags, batch.settings)
    found = stored_graphs.serve(arrays, batch.settings, names)
    assert list(found) == list(names)
    for name in names:
        ours, theirs = found[name], getattr(expected, name)
        np.testing.assert_array_equal(ours.edge_index, theirs.edge_index, err_msg=name)
        np.testing.assert_array_equal(ours.cell_offsets, theirs.cell_offsets, err_msg=name)
        assert (ours.edge_index.dtype, ours.cell_offsets.dtype) == (np.int64, np.int32)
    memories = {found[name].edge_index.__array_interface__["data"][0] for name in names if len(found[name])}
    assert len(memories) == sum(len(found[name]) > 0 for name in names), "graphs share memory"


some_names = st.lists(st.sampled_from(GRAPH_NAMES), min_size=1, unique=True).map(tuple)


@examples(max_examples=100)
@given(batches(), st.lists(st.booleans(), min_size=4, max_size=4), some_names)
def test_serves_any_structures(batch: Batch, chosen: list[bool], names: tuple[str, ...]) -> None:
    """Slabs, wires, tiny and skewed cells, ties at every limit, atoms far outside: what the kernel is tried on."""
    check_serving(batch, chosen, names)


@pytest.mark.slow
@examples(max_examples=3000)
@given(batches(), st.lists(st.booleans(), min_size=4, max_size=4), some_names)
def test_serves_any_structures_often(batch: Batch, chosen: list[bool], names: tuple[str, ...]) -> None:
    check_serving(batch, chosen, names)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: replace(p, source=p.source + np.uint16(60_000)),
        lambda p: replace(p, neighbor_counts=p.neighbor_counts + np.uint16(1)),
        lambda p: replace(p, neighbor_counts=p.neighbor_counts[:-1]),
        lambda p: replace(p, neighbor_counts=np.zeros_like(p.neighbor_counts)),
        lambda p: replace(p, cell_offsets=p.cell_offsets[:-1]),
    ],
    ids=["source", "too many", "too short", "none", "offsets"],
)
def test_columns_that_contradict_the_structures_are_refused(change) -> None:
    positions = np.random.default_rng(0).random((9, 3)) * 3
    batch = Batch(
        positions, np.zeros((1, 3, 3)), np.zeros((1, 3), bool), np.array([9]), np.full(9, 2), [MOLECULE]
    )  # fmt: skip
    arrays = arrays_of(batch, np.array([True]))
    names = ("source", "neighbor_counts", "cell_offsets", "membership")
    packed = change(PackedFourGraphs(**{name: arrays[f"stored_{name}"].astype("i4") for name in names}))
    arrays |= {f"stored_{name}": column for name, column in vars(packed).items()}
    with pytest.raises(ShardError, match="damaged"):
        stored_graphs.serve(arrays, [MOLECULE], ("main",))
