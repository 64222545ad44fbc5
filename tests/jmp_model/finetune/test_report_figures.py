"""Figures take their colours from the page, and bear what a failed model gives them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jmp_model.finetune import report_figures as draw

X = np.linspace(-1.0, 1.0, 50)
FIGURES = {
    "parity": lambda: draw.parity(X, X + 0.1, label="energy, eV"),
    "many points": lambda: draw.parity(np.tile(X, 40), np.tile(X, 40) ** 2, label="energy, eV"),
    "histogram": lambda: draw.error_histogram(0.1 * X, label="meV"),
    "elements": lambda: draw.element_bars({"H": (3.0, 10), "C": (1350.2, 4000)}, label="meV"),
    "forces": lambda: draw.force_bars(np.arange(1.0, 13.0), np.arange(12.0), label="meV/Å"),
    "curves": lambda: draw.curves([("a", [1, 2], [0.1, 9.0])], label="loss", logarithmic=True, best=2),
    "confusion": lambda: draw.confusion(np.array([[3, 1], [0, 4]])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_svg_in_the_colours_of_the_page(name: str) -> None:
    svg = str(FIGURES[name]())
    assert svg.startswith("<svg role=")
    assert "#0102" not in svg
    assert "var(--" in svg
    assert "<metadata>" not in svg
    assert not re.search(r"(href|src)=.https?:", svg)


def test_counts_stand_beside_the_bars() -> None:
    svg = str(FIGURES["elements"]())
    assert "1,350  of 4,000" in svg
    assert svg.index("3  of 10") < svg.index("1,350  of 4,000")  # the largest error comes last, on top


def test_constant_labels_have_a_figure() -> None:
    assert "<svg" in draw.parity(np.ones(5), np.ones(5), label="x")
    assert "<svg" in draw.error_histogram(np.zeros(5), label="x")


def test_nothing_finite_is_said() -> None:
    nothing = np.full(3, np.nan)
    for shown in (draw.parity(X[:3], nothing, label="x"), draw.error_histogram(nothing, label="x")):
        assert "no prediction is finite" in shown
    assert "no prediction is finite" in draw.element_bars({}, label="x")
