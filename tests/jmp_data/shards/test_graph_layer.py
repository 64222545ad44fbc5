from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Blosc

from jmp_data import open_dataset, write_dataset
from jmp_data.errors import InvalidStructureError, ManifestError, MissingFileError, ShardError
from jmp_data.graphs import GRAPH_NAMES, GraphSettings, unpack_four_graphs
from jmp_data.schema import Block, Schema
from jmp_data.shards.granules import decompress_granules
from jmp_data.shards.graph_layer import LayerBlock, LayerSettings
from jmp_data.shards.integrity import verify_dataset
from tests.graph_structures import far_unwrapped, flat_cell, mixed, molecules, searched, slabs

FORMATS = ["zarr", "webdataset"]
SMALL = {
    "periodic": GraphSettings(5.0, main=12, a2ee2a=8, qint=4, a2a=60),
    "molecule": GraphSettings(4.0, main=9, a2ee2a=6, qint=3, a2a=40),
}
ALL, MAIN = LayerSettings("all", **SMALL), LayerSettings("main", **SMALL)


def assert_same_edges(found, expected, name=""):
    np.testing.assert_array_equal(found.edge_index, expected.edge_index, err_msg=name)
    np.testing.assert_array_equal(found.cell_offsets, expected.cell_offsets, err_msg=name)


def settings_of(block, layer):
    return [layer.periodic if axes.any() else layer.molecule for axes in block.pbc]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layer", [ALL, MAIN, LayerSettings("all"), LayerSettings("main")], ids=lambda s: s.kind)
def test_stored_graphs_are_those_that_a_search_finds(tmp_path: Path, format: str, layer: LayerSettings) -> None:
    dataset = write_dataset(mixed(0, 120), tmp_path / "train", format=format, graphs=layer)
    assert dataset.graph_layer.settings == layer
    for number, block in enumerate(dataset.blocks()):
        expected = searched(block, settings_of(block, layer))
        stored = dataset.read_graphs(number)
        assert list(stored) == list(GRAPH_NAMES if layer.kind == "all" else ("main", "a2ee2a", "qint"))
        for name, edges in stored.items():
            assert_same_edges(edges, getattr(expected, name), name)
    assert verify_dataset(dataset.path) == []


def test_a_block_of_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp_data.shards.graph_layer.layout.MOST_PIECE_EDGES", 1)
    dataset = write_dataset(slabs(1, 150), tmp_path / "train", graphs=LayerSettings("all"))
    files = sorted(path.name for path in (tmp_path / "train/graphs/source/c/0").iterdir())
    assert len(files) > 10
    block = dataset.read_block(0)
    expected = searched(block, settings_of(block, LayerSettings("all")))
    assert_same_edges(dataset.read_graphs(0)["a2a"], expected.a2a)
    layer, whole = dataset.graph_layer.read_block(0), dataset.graph_layer.read_block(0).take(np.arange(150))
    ends = np.cumsum(layer.edge_counts)
    for row in (0, 1, 77, 149):
        one = layer.take(np.array([row]))
        np.testing.assert_array_equal(one.source, whole.source[ends[row] - layer.edge_counts[row] : ends[row]])
    stored = zarr.open_group(tmp_path / "train", mode="r")["graphs/source"][0]
    np.testing.assert_array_equal(stored[: ends[-1]], whole.source)
    assert not stored[ends[-1] :].any()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sets(st.integers(0, 199)), travelled=st.booleans())
def test_any_rows_of_a_block(tmp_path: Path, rows: set[int], travelled: bool) -> None:
    folder = tmp_path / "train"
    dataset = (
        open_dataset(folder) if folder.exists() else write_dataset(mixed(2, 200), folder, graphs=LayerSettings("all"))
    )
    layer = dataset.graph_layer.read_block(0)
    if travelled:
        layer = LayerBlock.from_arrays(layer.arrays())
    chosen = np.array(sorted(rows), np.int64)
    block = dataset.read_block(0).take(chosen)
    found = unpack_four_graphs(layer.take(chosen), block.natoms)
    expected = searched(block, settings_of(block, LayerSettings("all")))
    for name in GRAPH_NAMES:
        assert_same_edges(getattr(found, name), getattr(expected, name), name)


@pytest.mark.parametrize("format", FORMATS)
def test_zarr_python_reads_the_layer(tmp_path: Path, format: str) -> None:
    dataset = write_dataset(mixed(3, 50), tmp_path / "train", format=format, graphs=ALL)
    group = zarr.open_group(tmp_path / "train" / "graphs", mode="r")
    layer = dataset.graph_layer.read_block(0)
    packed = layer.take(np.arange(50))
    np.testing.assert_array_equal(group["nedges"][0][:50], layer.nedges)
    np.testing.assert_array_equal(group["neighbor_counts"][0][: layer.natoms.sum()], layer.neighbor_counts)
    for name in ("source", "cell_offsets", "membership"):
        np.testing.assert_array_equal(group[name][0][: len(packed.source)], getattr(packed, name))
    assert group.attrs["membership_bits"] == {"main": 1, "a2ee2a": 2, "qint": 4}


@pytest.mark.parametrize("format", FORMATS)
def test_the_layer_changes_nothing_else(tmp_path: Path, format: str) -> None:
    plain = write_dataset(mixed(4, 40), tmp_path / "plain/train", format=format, name="same")
    layered = write_dataset(mixed(4, 40), tmp_path / "layered/train", format=format, name="same", graphs=ALL)
    assert plain.fingerprint == layered.fingerprint
    assert plain.graph_layer is None
    for path in (tmp_path / "plain/train").rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "summary.json", "zarr.json"):
            assert path.read_bytes() == (tmp_path / "layered/train" / path.relative_to(plain.path)).read_bytes()
    with pytest.raises(MissingFileError, match="--graphs"):
        plain.read_graphs(0)


def test_what_cannot_be_stored_is_searched_when_read(tmp_path: Path) -> None:
    structures = mixed(5, 11)
    structures[4:4] = [far_unwrapped()]
    dataset = write_dataset([*structures, far_unwrapped()], tmp_path / "train", schema=Schema(), graphs=ALL)
    assert dataset.manifest.graphs["structures_not_stored"] == 2
    block = dataset.read_block(0)
    expected = searched(block, settings_of(block, ALL))
    for name, edges in dataset.read_graphs(0).items():
        assert_same_edges(edges, getattr(expected, name), name)
    assert np.flatnonzero(dataset.graph_layer.read_block(0).nedges < 0).tolist() == [4, 12]


def test_a_structure_without_any_graph_does_not_stop_the_others(tmp_path: Path) -> None:
    dataset = write_dataset([*mixed(6, 5), flat_cell()], tmp_path / "train", schema=Schema(), graphs=ALL)
    layer = dataset.graph_layer.read_block(0)
    assert np.flatnonzero(layer.nedges < 0).tolist() == [5]
    assert len(layer.take(np.arange(6)).source) == layer.edge_counts.sum() > 0
    with pytest.raises(InvalidStructureError, match="no volume"):
        dataset.read_graphs(0)


def test_single_atoms_have_no_edges(tmp_path: Path) -> None:
    alone = [s for s in molecules(7, 300) if s.natoms == 1]
    dataset = write_dataset(alone, tmp_path / "train", graphs=ALL)
    assert not (tmp_path / "train/graphs/source/c").exists()
    assert all(len(edges) == 0 for edges in dataset.read_graphs(0).values())
    assert zarr.open_group(tmp_path / "train", mode="r")["graphs/source"].shape[0] == 256
    assert verify_dataset(dataset.path) == []


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_byte_is_found_and_never_served(tmp_path: Path, format: str, data) -> None:
    folder = tmp_path / format / "train"
    if not folder.exists():
        write_dataset(mixed(8, 90), folder, format=format, graphs=ALL)
    good = open_dataset(folder).read_graphs(0)
    path = data.draw(st.sampled_from(sorted(path for path in (folder / "graphs").rglob("*") if path.is_file())))
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[data.draw(st.integers(0, len(original) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        findings = verify_dataset(folder)
        assert findings
        assert all(str(folder) in finding.message for finding in findings)
        try:
            served = open_dataset(folder).read_graphs(0)
        except ShardError:
            pass
        else:
            for name, edges in good.items():
                assert_same_edges(served[name], edges, name)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("array", ["nedges", "neighbor_counts", "source", "cell_offsets", "membership"])
def test_damage_names_shard_array_and_block(tmp_path: Path, format: str, array: str) -> None:
    folder = tmp_path / "train"
    dataset = write_dataset(molecules(9, 5000), folder, format=format, graphs=MAIN)
    (file,) = (path for path in (folder / "graphs" / array / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    middle = (len(content) - 256 * 16) // 2
    content[middle] ^= 0x10
    file.write_bytes(content)
    (finding,) = verify_dataset(folder)
    assert finding.shard == 0
    assert f"shard 0, array graphs/{array}, block 1" in finding.message
    with pytest.raises(ShardError, match=rf"shard 0, array graphs/{array}, block 1"):
        dataset.read_graphs(1)
    assert len(dataset.read_graphs(0)["main"]) > 0
    assert len(dataset.read_block(1)) == 2048


def test_truncated_and_missing_files_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_dataset(mixed(10, 60), folder, graphs=ALL)
    for path in sorted(path for path in (folder / "graphs").rglob("*") if path.is_file()):
        original = path.read_bytes()
        path.write_bytes(original[:-1])
        assert verify_dataset(folder), path
        path.unlink()
        assert verify_dataset(folder), path
        path.write_bytes(original)
    assert verify_dataset(folder) == []


def test_reads_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    local = write_dataset(mixed(11, 30), tmp_path / "train", graphs=ALL)
    fsspec.filesystem("memory").put(str(tmp_path / "train"), "/layered/train", recursive=True)
    remote = open_dataset("memory://layered/train")
    for name, edges in local.read_graphs(0).items():
        assert_same_edges(remote.read_graphs(0)[name], edges, name)


def test_settings_come_back_and_malformed_ones_are_refused() -> None:
    for layer in (ALL, MAIN, LayerSettings("main")):
        assert LayerSettings.from_json({**layer.to_json(), "edges": 3}) == layer
    with pytest.raises(ManifestError, match="stored graphs"):
        LayerSettings.from_json({**ALL.to_json(), "periodic": {"cutoff": 3.0}})


def test_main_offers_only_graphs_that_it_holds_whole() -> None:
    wide = GraphSettings(5.0, main=10, a2ee2a=20, qint=4)
    assert LayerSettings("main", periodic=wide).names == ("main", "qint")
    block = Block.from_structures(mixed(12, 20), Schema())
    assert LayerSettings("all", periodic=wide).names == GRAPH_NAMES
    assert {s.a2a for s in LayerSettings("main", periodic=wide).of_structures(block.pbc)} == {10, 30}


@given(st.integers(0, 12), st.integers(0, 12), st.sampled_from([1, 2, 3]), st.booleans())
def test_granules_of_a_buffer(first: int, stop: int, size: int, random: bool) -> None:
    first, stop = sorted((first, stop))
    items = np.random.default_rng(0).integers(0, 256 if random else 4, 12 * 1000 * size).astype(np.uint8)
    payload = Blosc("zstd", 5, Blosc.SHUFFLE, blocksize=1000 * size).encode(items.view(f"V{size}"))
    target = np.zeros((stop - first) * 1000 * size, np.uint8)
    if first < stop:
        decompress_granules(np.frombuffer(payload, np.uint8), first, stop, target)
    np.testing.assert_array_equal(target, items[first * 1000 * size : stop * 1000 * size])
