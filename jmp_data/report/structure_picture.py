"""Structures as small pictures: shaded spheres from back to front, bonds, and the cell, as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from jmp_data.schema import Structure

Array = npt.NDArray[np.float64]

SIZE: Final = (240, 200)
_MARGIN = 10
_BOND = 1.18  # of the sum of covalent radii
_TILT_MOLECULE, _TURN_MOLECULE = 18.0, 24.0  # degrees; planar molecules seen at an angle look like something
_TILT_CRYSTAL, _TURN_CRYSTAL = 14.0, 22.0
_FOG = 0.5  # how far the farthest atoms fade into the page
_NONMETALS = frozenset([1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 52, 53, 54])


def _turn(axis: int, degrees: float) -> Array:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def _is_periodic(structure: Structure) -> bool:
    return structure.cell is not None and bool(np.any(structure.pbc))


def _view(structure: Structure) -> Array:
    """Rows: screen x, screen y (up), towards the eye."""
    positions = structure.positions.astype(np.float64)
    if _is_periodic(structure):
        # From the side, with the third lattice vector up, as slabs are drawn.
        return _turn(0, _TILT_CRYSTAL) @ _turn(1, _TURN_CRYSTAL) @ _turn(0, -90.0)
    centred = positions - positions.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=True)[2] if len(positions) > 1 else np.eye(3)
    axes[2] *= np.sign(np.linalg.det(axes))
    return np.asarray(_turn(0, _TILT_MOLECULE) @ _turn(1, _TURN_MOLECULE) @ axes)


def _radii(structure: Structure) -> Array:
    from ase.data import covalent_radii

    radii = np.asarray(covalent_radii[structure.atomic_numbers], np.float64)
    if not _is_periodic(structure):
        return np.maximum(0.42 * radii, 0.2)
    metals = ~np.isin(structure.atomic_numbers, list(_NONMETALS))
    return np.where(metals, 0.78 * radii, np.maximum(0.62 * radii, 0.32))


def _bonds(structure: Structure) -> list[tuple[int, int]]:
    """Pairs at bonding distance, of which at least one is no metal; images are left out."""
    from ase.data import covalent_radii
    from scipy.spatial import cKDTree

    numbers = structure.atomic_numbers
    reach = covalent_radii[numbers]
    pairs = cKDTree(structure.positions).query_pairs(_BOND * 2 * float(reach.max()), output_type="ndarray")
    if len(pairs) == 0:
        return []
    i, j = pairs.T
    distances = np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)
    nonmetal = np.isin(numbers, list(_NONMETALS))
    bonded = (distances < _BOND * (reach[i] + reach[j])) & (nonmetal[i] | nonmetal[j])
    hydrogens = (numbers[i] == 1) & (numbers[j] == 1) & (distances > 0.9)
    return [(int(a), int(b)) for a, b in pairs[bonded & ~hydrogens]]


def draw_structure(structure: Structure) -> Markup:
    """One structure as SVG; the page must hold `color_definitions` of its elements.

    Args:
        structure: any; a few hundred atoms at most make a readable picture.
    """
    view, radii = _view(structure), _radii(structure)
    points = structure.positions.astype(np.float64) @ view.T
    low, high = (points[:, :2] - radii[:, None]).min(axis=0), (points[:, :2] + radii[:, None]).max(axis=0)
    span = np.maximum(high - low, 2.0)
    scale = min((SIZE[0] - 2 * _MARGIN) / span[0], (SIZE[1] - 2 * _MARGIN) / span[1], 46.0)
    centre = (low + high) / 2

    def screen(place: Array) -> tuple[float, float]:
        return (
            SIZE[0] / 2 + scale * float(place[0] - centre[0]),
            SIZE[1] / 2 - scale * float(place[1] - centre[1]),
        )

    depth = points[:, 2]
    near = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9)
    parts = [f'<svg class="picture" viewBox="0 0 {SIZE[0]} {SIZE[1]}" role="img" aria-label="structure">']
    parts += _cell_lines(structure, view, screen)
    drawn: list[tuple[float, str]] = []
    for i, j in _bonds(structure):
        x1, y1 = screen(points[i])
        x2, y2 = screen(points[j])
        width = max(1.2, 0.17 * scale)
        line = (
            f'<line class="bond" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{width:.1f}"/>'
        )
        # Behind both of its atoms, whatever the order of those.
        drawn.append((min(depth[i], depth[j]) - 1e-6, line))
    for atom, number in enumerate(structure.atomic_numbers):
        x, y = screen(points[atom])
        circle = f'cx="{x:.1f}" cy="{y:.1f}" r="{scale * radii[atom]:.1f}"'
        sphere = f'<circle class="atom" {circle} fill="url(#element-{number})"/>'
        fog = _FOG * (1 - near[atom]) if np.ptp(depth) > 2 else 0.0
        if fog > 0.04:
            sphere += f'<circle class="fog" {circle} opacity="{fog:.2f}"/>'
        drawn.append((float(depth[atom]), sphere))
    parts += [text for _, text in sorted(drawn, key=lambda entry: entry[0])]
    parts.append("</svg>")
    return Markup("".join(parts))


def _cell_lines(structure: Structure, view: Array, screen: Any) -> list[str]:
    if structure.cell is None or not _is_periodic(structure):
        return []
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], np.float64)
    places = corners @ structure.cell.astype(np.float64) @ view.T
    lines = []
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                (x1, y1), (x2, y2) = screen(places[a]), screen(places[b])
                lines.append(f'<line class="cell" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    return lines


def color_definitions(atomic_numbers: Iterable[int]) -> Markup:
    """One shaded gradient an element, to stand once in a page.

    Args:
        atomic_numbers: elements that pictures show.
    """
    gradients = []
    for number in sorted(set(atomic_numbers)):
        light, base, dark = _shades(number)
        gradients.append(
            f'<radialGradient id="element-{number}" cx="38%" cy="32%" r="75%"><stop offset="0" stop-color="{light}"/>'
            f'<stop offset="0.45" stop-color="{base}"/><stop offset="1" stop-color="{dark}"/></radialGradient>'
        )
    return Markup('<svg class="definitions" aria-hidden="true"><defs>' + "".join(gradients) + "</defs></svg>")


def element_color(number: int) -> str:
    """The usual colour of an element."""
    return _shades(number)[1]


def _shades(number: int) -> tuple[str, str, str]:
    from ase.data.colors import jmol_colors

    # Jmol's hydrogen is the white of the page, and its colours end with meitnerium.
    usual = jmol_colors[min(number, len(jmol_colors) - 1)]
    base = np.array([0.90, 0.91, 0.93]) if number == 1 else np.asarray(usual, np.float64)
    shades = (base + (1 - base) * 0.55, base, base * 0.55)
    light, middle, dark = (
        "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in np.clip(shade, 0, 1)) for shade in shades
    )
    return str(escape(light)), str(escape(middle)), str(escape(dark))
