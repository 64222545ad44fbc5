import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmp_data import Structure, open_dataset, write_dataset
from jmp_data.errors import InvalidStructureError, ManifestError, MissingFileError, ShardError
from jmp_data.schema import Block, Schema
from jmp_data.shards.integrity import verify_dataset
from jmp_data.shards.layout import Layout
from jmp_data.shards.packing import repack
from tests.structures import assert_same_structure, random_structures, structure_lists

FORMATS = ["zarr", "webdataset"]


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(tmp_path: Path, format: str) -> None:
    structures = random_structures(0, 5000)
    dataset = write_dataset(structures, tmp_path / "mine" / "train", format=format)
    assert len(dataset) == 5000
    assert dataset.name == "mine"
    assert dataset.num_blocks == 3
    np.testing.assert_array_equal(dataset.natoms, [s.natoms for s in structures])
    for index in (0, 2047, 2048, 4999, -1):
        assert_same_structure(dataset[index], structures[index])
    for left, right in zip(dataset, structures, strict=True):
        assert_same_structure(left, right)
    assert verify_dataset(dataset.path) == []


def test_zarr_python_reads_the_same(tmp_path: Path) -> None:
    structures = random_structures(1, 3000)
    dataset = write_dataset(structures, tmp_path / "train")
    group = zarr.open_group(tmp_path / "train", mode="r")
    for number, block in enumerate(dataset.blocks()):
        natoms = group["natoms"][number]
        np.testing.assert_array_equal(natoms[natoms > 0], block.natoms)
        for name, column in block.columns.items():
            stored = group[name][number]
            np.testing.assert_array_equal(stored[: len(column)], column)
            assert not stored[len(column) :].any()
        ids = bytes(group["source_id"][number]).split(b"\n")
        assert ids[: len(block)] == block.source_ids.tolist()


def test_stock_webdataset_reads_the_same(tmp_path: Path) -> None:
    structures = random_structures(2, 3000)
    dataset = write_dataset(structures, tmp_path / "train", format="webdataset")
    tar = str(tmp_path / "train" / "shard-000000.tar")
    samples = list(webdataset.WebDataset(tar, shardshuffle=False).decode())
    assert len(samples) == dataset.num_blocks
    for sample, block in zip(samples, dataset.blocks(), strict=True):
        np.testing.assert_array_equal(sample["natoms.npy"], block.natoms)
        for name, column in block.columns.items():
            np.testing.assert_array_equal(sample[f"{name}.npy"], column)


def test_the_documented_lines_read_it_without_this_project(tmp_path: Path) -> None:
    """In an interpreter that cannot import us, from a folder of its own."""
    structures = random_structures(2, 300)
    write_dataset(structures, tmp_path / "shards" / "ani1x" / "train", format="webdataset")
    page = (Path(__file__).parents[3] / "docs" / "streaming.md").read_text()
    lines = page.split("## Without this project")[1].split("```python\n")[1].split("```")[0]
    check = "import sys\nassert not any(name.startswith('jmp') for name in sys.modules)"
    code = f"{lines}\n{check}\nprint(first.tolist(), energy[0])"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{structures[0].positions.astype(np.float32).tolist()} {structures[0].energy}"


@pytest.mark.parametrize("format", FORMATS)
def test_targets_of_any_shape(tmp_path: Path, format: str) -> None:
    rng = np.random.default_rng(0)
    structures = [
        Structure(
            atomic_numbers=[6] * n,
            positions=rng.normal(size=(n, 3)),
            targets={"dipole": rng.normal(size=3), "charges": rng.normal(size=n), "polar": rng.normal(size=(n, 3, 3))},
        )
        for n in (2, 3, 4)
    ]
    dataset = write_dataset(structures, tmp_path / "train", format=format)
    assert "energy" not in dataset.schema
    assert dataset.schema["charges"].level == "atom"
    assert dataset.schema["dipole"].level == "structure"
    for index, structure in enumerate(structures):
        for name, value in structure.targets.items():
            np.testing.assert_array_equal(dataset[index].targets[name], value)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_byte_is_found_and_never_served(tmp_path: Path, format: str, data) -> None:
    folder = tmp_path / format / "train"
    if not folder.exists():
        write_dataset(random_structures(5, 400), folder, format=format)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = bytearray(original)
    damaged[position] ^= data.draw(st.integers(1, 255))
    good = list(open_dataset(folder))
    path.write_bytes(damaged)
    try:
        if path.name == "manifest.json":
            with pytest.raises(ManifestError, match=r"manifest\.json"):
                open_dataset(folder)
            return
        findings = verify_dataset(folder)
        assert findings
        assert all(str(folder) in finding.message for finding in findings)
        for left, right in zip(_readable(folder), good, strict=False):
            assert_same_structure(left, right)
    finally:
        path.write_bytes(original)


def _readable(folder: Path):
    """Structures until the first damage is reported."""
    dataset = open_dataset(folder)
    try:
        yield from dataset
    except ShardError:
        return


@pytest.mark.parametrize(("format", "file"), [("zarr", "forces/c/0/0/0"), ("webdataset", "shard-000000.tar")])
def test_damage_names_shard_array_and_block(tmp_path: Path, format: str, file: str) -> None:
    folder = tmp_path / "train"
    dataset = write_dataset(random_structures(6, 5000), folder, format=format)
    content = bytearray((folder / file).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (folder / file).write_bytes(content)
    (finding,) = verify_dataset(folder)
    assert finding.shard == 0
    assert "block 1" in finding.message
    assert "shard 0" in finding.message
    if format == "zarr":
        assert "array forces" in finding.message
    with pytest.raises(ShardError, match="block 1"):
        dataset.read_block(1)
    assert len(dataset.read_block(0)) == 2048


@pytest.mark.parametrize("format", FORMATS)
def test_truncated_missing_and_swapped_files_are_found(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "train"
    write_dataset(random_structures(7, 300), folder, format=format)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"):
        original = path.read_bytes()
        path.write_bytes(original[:-1])
        assert verify_dataset(folder), path
        path.unlink()
        assert verify_dataset(folder), path
        path.write_bytes(original)
    (folder / "stray.bin").write_bytes(b"x")
    assert [finding.file for finding in verify_dataset(folder)] == ["stray.bin"]


@given(structure_lists(60), st.integers(1, 9), st.integers(20, 60))
def test_repacking_does_not_depend_on_how_blocks_arrive(structures, per_block: int, atoms: int) -> None:
    layout = Layout(block_structures=per_block, block_atoms=atoms, block_id_bytes=200)
    whole = Block.from_structures(structures, Schema())
    one = list(repack([whole], layout))
    many = list(repack((whole.take(slice(i, i + 1)) for i in range(len(whole))), layout))
    assert [len(block) for block in one] == [len(block) for block in many]
    for block in one:
        assert len(block) <= per_block
        assert block.num_atoms <= atoms
    joined = Block.concatenate(one)
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(joined.columns[name], column)


def test_a_structure_larger_than_a_block_is_refused_by_name() -> None:
    block = Block.from_structures(random_structures(8, 1, low=12, high=13), Schema())
    with pytest.raises(InvalidStructureError, match="group/0"):
        list(repack([block], Layout(block_atoms=10)))


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"manifest\.json"):
        open_dataset(tmp_path)
    write_dataset(random_structures(9, 3), tmp_path / "train")
    with pytest.raises(ManifestError, match="already"):
        write_dataset(random_structures(9, 3), tmp_path / "train")


def test_reads_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    structures = random_structures(10, 50)
    write_dataset(structures, tmp_path / "train")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "train"), "/bucket/train", recursive=True)
    dataset = open_dataset("memory://bucket/train")
    for left, right in zip(dataset, structures, strict=True):
        assert_same_structure(left, right)
