import json
import re
from html.parser import HTMLParser
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from jmp_data import Structure, open_dataset, write_dataset
from jmp_data.build import BuildSettings, choose_engine, plan_build, run_build
from jmp_data.errors import ManifestError, MissingFileError
from jmp_data.overlap import find_overlap, read_summary, write_overlap
from jmp_data.report import render_report, write_report
from jmp_data.shards import ShardDataset
from jmp_data.shards.integrity import find_datasets
from tests import raw_archives
from tests.jmp_data.report.browser import Page, needs_browser
from tests.structures import random_structures

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Strict(HTMLParser):
    """Checks nesting and gathers what a page could load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "xlink:href")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parsed(page: str) -> Strict:
    strict = Strict()
    strict.feed(page)
    strict.close()
    assert strict.open == []
    return strict


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[ShardDataset]:
    """OC20 and ANI-1x miniatures, one record of which goes to quarantine, and a set of a user's own."""
    folder = tmp_path_factory.mktemp("report")
    raw = folder / "raw"
    raw.mkdir()
    raw_archives.write_oc20(raw)
    raw_archives.write_ani1x(raw)
    import h5py

    with h5py.File(raw / "ani1x-release.h5", "r+") as file:
        name = next(iter(file))
        file[name]["coordinates"][2, 0, 0] = np.nan
    planned = plan_build(["oc20", "ani1x"], raw, folder / "shards", splits=(), settings=BuildSettings(), limit=None)
    list(run_build(planned, choose_engine(workers=1, scheduler=None), lambda done: None))
    own = random_structures(1, 30)
    write_dataset(own, folder / "shards" / "mine" / "train")
    return [open_dataset(path) for path in find_datasets(folder / "shards")]


@pytest.fixture(scope="module")
def page(datasets: list[ShardDataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(datasets, tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_is_well_formed_and_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    strict = parsed(text)
    assert not strict.tags & {"script", "iframe", "object", "embed", "img"}
    assert all(link.startswith(("#", "data:")) for link in strict.links)
    assert {link[1:] for link in strict.links if link.startswith("#")} <= set(strict.ids)
    assert len(strict.ids) == len(set(strict.ids))
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_figures_of_every_split_are_on_the_page(page: Path, datasets: list[ShardDataset]) -> None:
    text = parsed(page.read_text()).text
    for dataset in datasets:
        manifest = dataset.manifest
        assert manifest.name in text
        assert manifest.split in text
        assert f"{manifest.num_structures:,}" in text
        assert dataset.fingerprint in text
        for value in (manifest.provenance.get("licence"), manifest.provenance.get("citation")):
            assert value is None or value in text
    for title in ("Atoms per structure", "Neighbours per atom", "Energy, as published", "Energy, referenced", "Force"):
        assert title in text


def test_quarantine_is_counted_by_reason_with_an_example(page: Path, datasets: list[ShardDataset]) -> None:
    quarantined = [d for d in datasets if d.manifest.quarantined]
    assert len(quarantined) == 1
    (reason,) = quarantined[0].manifest.quarantined
    text = parsed(page.read_text()).text
    assert reason in text
    lines = quarantined[0].store.read("quarantine.jsonl").splitlines()
    assert json.loads(lines[0])["message"] in text
    assert "does not close" not in text


def test_all_elements_have_a_place_and_a_picture(tmp_path: Path) -> None:
    """Jmol's colours, which pictures use, end before the table does."""
    pairs = [
        Structure(
            atomic_numbers=[number, number], positions=[[0, 0, 0], [0, 0, 2.5]], energy=-1.0, source_id=f"e{number}"
        )
        for number in range(1, 119)
    ]
    everything = write_dataset(pairs, tmp_path / "all" / "train", name="all")
    heaviest = write_dataset(pairs[-6:], tmp_path / "heavy" / "train", name="heavy")
    text = render_report([everything, heaviest])
    strict = parsed(text)
    assert "118 elements" in strict.text
    assert "Oganesson: in 1 structures" in text
    pictured = {int(number) for number in re.findall(r"url\(#element-(\d+)\)", text)}
    assert pictured >= set(range(113, 119))
    assert {f"element-{number}" for number in pictured} <= set(strict.ids)


def test_flags_are_counted_with_an_example(tmp_path: Path) -> None:
    frames = [
        Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.2 if number == 4 else 0.74]], info={"energy": 1.0})
        for number in range(6)
    ]
    ase.io.write(tmp_path / "h.extxyz", frames)
    (tmp_path / "h.yaml").write_text(
        "name: h\nfiles: [h.extxyz]\nsplits: {fractions: {train: 1.0}}\ntrust: {duplicates: false}\n"
    )
    planned = plan_build([str(tmp_path / "h.yaml")], tmp_path, tmp_path / "out", settings=BuildSettings())
    (done,) = run_build(planned, choose_engine(workers=1, scheduler=None), lambda part: None)
    text = parsed(render_report([open_dataset(done.dataset)])).text
    assert "flagged, stored atoms_too_close 1 h.extxyz#4: two atoms are 0.200 Å apart, less than 0.4 Å" in text


def test_names_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    structure = Structure(atomic_numbers=[1, 8], positions=[[0, 0, 0], [0, 0, 1]], energy=1.0, source_id=evil)
    dataset = write_dataset([structure] * 3, tmp_path / "train", name=f"a&b {evil}")
    text = render_report([dataset])
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    parsed(text)


def test_data_sets_without_labels_or_provenance_have_a_page_too(tmp_path: Path) -> None:
    structure = Structure(atomic_numbers=[2], positions=[[0, 0, 0]])
    text = parsed(render_report([write_dataset([structure] * 2, tmp_path / "only", name="bare")])).text
    assert "not recorded" in text
    assert "Force on an atom" not in text
    with pytest.raises(ManifestError, match="at least one"):
        render_report([])


def test_a_search_for_duplicates_becomes_a_table(datasets: list[ShardDataset], tmp_path: Path) -> None:
    left = next(d for d in datasets if d.name == "ani1x" and d.split == "train")
    right = next(d for d in datasets if d.name == "mine")
    write_overlap(find_overlap([left], [right]), tmp_path)
    text = parsed(render_report([right], overlap=read_summary(tmp_path))).text
    assert "Duplicates between data sets exact within 0.001 Å, near within 0.1 Å after alignment" in text
    assert f"ani1x/train {len(left):,} 0 0 0% mine/train {len(right):,} 0 0 0%" in text
    with pytest.raises(MissingFileError, match="jmp-data overlap"):
        read_summary(tmp_path / "elsewhere")
    (tmp_path / "overlap.json").write_text('{"pairs": [{}], "left": [], "right": [], "thresholds": {}}')
    with pytest.raises(ManifestError, match="another version"):
        read_summary(tmp_path)


def test_the_same_data_give_the_same_page(datasets: list[ShardDataset]) -> None:
    assert render_report(datasets) == render_report(list(reversed(datasets)))


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_a_word_and_without_asking_anyone(page: Path, tmp_path: Path, dark: bool) -> None:
    with Page(dark=dark) as browser:
        browser.open(page)
        assert browser.messages == []
        assert browser.requests == [page.resolve().as_uri()]
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
        titles = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        assert titles == ["Overview", "ani1x", "mine", "oc20"] or set(titles) >= {"Overview", "ani1x", "oc20"}
        empty = "[...document.querySelectorAll('main svg')].filter(s => s.getBoundingClientRect().height < 50).length"
        assert browser.evaluate(empty) == 0
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000
        assert browser.messages == []


@needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_the_window(page: Path, width: int) -> None:
    with Page(width=width) as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(page)
        outside = (
            "[...document.querySelectorAll('*')].filter(e => !e.closest('.scroll') && "
            "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120)).slice(0, 5)"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, browser.evaluate(outside)
        clipped = (
            "[...document.querySelectorAll('svg.chart text')].filter(t => { const a = t.getBoundingClientRect(), "
            "b = t.closest('svg').getBoundingClientRect(); return a.left < b.left - 2 || a.right > b.right + 2; }).length"  # noqa: E501 - one line of a page's script
        )
        assert browser.evaluate(clipped) == 0
