"""Loss curves of a run as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jmp_model.train.metrics_log import Row, read_rows

Series = npt.NDArray[np.float64]


def plot_loss_curves(run: Path, tasks: Sequence[str], *, name: str = "loss_curves.png") -> Path:
    """Draw loss, loss per task, and validation errors per task against optimiser steps.

    Args:
        run: run folder with its metrics.
        tasks: names, as in the metrics.
        name: of the picture, in the run folder.
    """
    training, validation = read_rows(run, "training"), read_rows(run, "validation")
    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, per_task), (energy, force) = figure.subplots(2, 2, sharex=True)
    _training_axes(loss, training, ["loss", "energy_loss", "force_loss"], "loss (normalised)")
    _training_axes(per_task, training, [f"{task}/force_mae" for task in tasks], "training force MAE (eV/Å)")
    _validation_axes(energy, validation, tasks, "energy_mae", "validation energy MAE (eV per structure)")
    _validation_axes(force, validation, tasks, "force_mae", "validation force MAE (eV/Å)")
    for axes in (energy, force):
        axes.set_xlabel("optimiser steps")
    path = run / name
    figure.savefig(path, dpi=110)
    return path


def _training_axes(axes: Axes, rows: Sequence[Row], columns: Sequence[str], title: str) -> None:
    for number, column in enumerate(columns):
        steps, values = _series(rows, column)
        if len(steps):
            colour = f"C{number}"
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smoothed(values), color=colour, label=column.removesuffix("/force_mae"))
    _finish(axes, title)


def _validation_axes(axes: Axes, rows: Sequence[Row], tasks: Sequence[str], column: str, title: str) -> None:
    for task in tasks:
        steps, values = _series(rows, f"{task}/{column}")
        if len(steps):
            axes.plot(steps, values, marker="o", markersize=4, label=task)
    _finish(axes, title)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.set_yscale("log")
        axes.legend(fontsize=8)


def _series(rows: Sequence[Row], column: str) -> tuple[Series, Series]:
    points = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
    table = np.array(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smoothed(values: Series) -> Series:
    """Mean over a trailing window of a twentieth of the run."""
    width = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    means: Series = (sums[ends] - sums[starts]) / (ends - starts)
    return means
