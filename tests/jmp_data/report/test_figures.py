from xml.etree import ElementTree

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.data import chemical_symbols

from jmp_data import Structure
from jmp_data.report.figures import HEIGHT, WIDTH, Series, histogram
from jmp_data.report.periodic_table import periodic_table, table_place
from jmp_data.report.structure_picture import color_definitions, draw_structure


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def test_bars_have_the_heights_of_the_shares() -> None:
    edges = np.arange(5.0)
    svg = histogram(edges, [Series("train", 0, np.array([10, 0, 30, 60]), 100)], label="x")
    path = next(element for element in parse(svg) if element.get("class", "").startswith("bar")).get("d", "")
    bars = path.split("M")[1:]
    assert len(bars) == 3
    floor = float(bars[0].split("V")[0].split()[1])
    heights = [floor - float(bar.split("V")[1].split("H")[0]) for bar in bars]
    np.testing.assert_allclose(np.array(heights) / heights[0], [1, 3, 6], rtol=0.02)


def test_every_split_is_named_in_the_tooltip_of_its_bins() -> None:
    splits = [Series("train", 0, np.array([3, 1]), 4), Series("val<b>", 1, np.array([0, 2]), 2)]
    root = parse(histogram(np.array([-0.5, 0.5, 1.5]), splits, label="atoms & more", whole_numbers=True))
    titles = [element.text for element in root.iter("title")]
    assert titles == ["0\ntrain: 75% (3)", "1\ntrain: 25% (1)\nval<b>: 1e+02% (2)"] or titles[0] == "0\ntrain: 75% (3)"
    assert "val<b>" in str(titles[1])
    assert root.get("aria-label") == "atoms & more"


@pytest.mark.parametrize("logarithmic", [False, True])
def test_everything_lies_inside_the_figure(logarithmic: bool) -> None:
    edges = np.logspace(-3, 2, 31)
    rng = np.random.default_rng(0)
    splits = [Series(f"s{k}", k, rng.integers(0, 50, 30), 900) for k in range(3)]
    root = parse(histogram(edges, splits, label="force", logarithmic=logarithmic, mark=(1.0, "here")))
    for element in root.iter():
        for name, limit in (("x", WIDTH), ("x1", WIDTH), ("x2", WIDTH), ("y", HEIGHT), ("y1", HEIGHT), ("y2", HEIGHT)):
            if element.get(name) is not None:
                assert -0.1 <= float(element.get(name, "0")) <= limit + 0.1
    assert [element.text for element in root.iter("text") if element.text == "here"] == ["here"]


def test_the_table_has_the_shape_that_everyone_knows() -> None:
    places = {chemical_symbols[number]: table_place(number) for number in range(1, 119)}
    assert len(set(places.values())) == 118
    known = {"H": (0, 0), "He": (0, 17), "B": (1, 12), "Ne": (1, 17), "Sc": (3, 2), "Zn": (3, 11), "Ga": (3, 12)}
    known |= {"Ba": (5, 1), "Hf": (5, 3), "Pt": (5, 9), "Rn": (5, 17), "Rf": (6, 3), "Og": (6, 17)}
    known |= {"La": (8, 2), "Lu": (8, 16), "Ac": (9, 2), "Lr": (9, 16)}
    assert {symbol: places[symbol] for symbol in known} == known


def test_the_heat_map_counts_structures_and_tells_absent_elements_apart() -> None:
    structures, atoms = np.zeros(119, np.int64), np.zeros(119, np.int64)
    structures[[1, 6, 60]], atoms[[1, 6, 60]] = [2000, 20, 1], [9000, 30, 1]
    root = parse(periodic_table(structures, atoms, 4000))
    titles = {element.text for element in root.iter("title")}
    assert "Hydrogen: in 2,000 structures (50%), 9,000 atoms" in titles
    assert "Helium: none" in titles
    present = [group for group in root.iter("g") if "present" in group.get("class", "")]
    heat = [float(group.get("style", "").removeprefix("--heat:").rstrip("%")) for group in present]
    assert len(present) == 3
    assert heat[0] == 100
    assert heat[0] > heat[1] > heat[2]
    structures[60] = 0
    without = parse(periodic_table(structures, atoms, 4000))
    assert not [title for title in without.iter("title") if "Neodymium" in str(title.text)]


def test_molecules_are_drawn_atom_by_atom_and_bond_by_bond() -> None:
    ethanol = Structure.from_ase(molecule("CH3CH2OH"))
    root = parse(draw_structure(ethanol))
    assert len([e for e in root.iter("circle") if e.get("class") == "atom"]) == 9
    assert len([e for e in root.iter("line") if e.get("class") == "bond"]) == 8
    used = {e.get("fill") for e in root.iter("circle") if e.get("class") == "atom"}
    assert used == {"url(#element-1)", "url(#element-6)", "url(#element-8)"}
    gradients = parse(color_definitions(ethanol.atomic_numbers))
    assert {e.get("id") for e in gradients.iter("radialGradient")} == {"element-1", "element-6", "element-8"}


def test_bonds_never_hide_their_atoms() -> None:
    root = list(parse(draw_structure(Structure.from_ase(molecule("C2H4")))))
    kinds = [element.get("class") for element in root]
    assert kinds.index("bond") < kinds.index("atom")


def test_crystals_show_their_cell_and_single_atoms_are_drawn() -> None:
    crystal = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    root = parse(draw_structure(crystal))
    assert len([e for e in root.iter("line") if e.get("class") == "cell"]) == 12
    lone = parse(draw_structure(Structure(atomic_numbers=[18], positions=[[5, 5, 5]])))
    assert len([e for e in lone.iter("circle") if e.get("class") == "atom"]) == 1
