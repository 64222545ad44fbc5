"""Random mixtures in memory for the stream tests, and what their epochs must hold."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from jmp_data.mixture import Mixture, Subset
from tests.jmp_data.stream.memory_dataset import make_dataset


@st.composite
def mixtures(draw, max_datasets=3, max_blocks=6, max_block=25, plain=False):
    """Mixtures of a few small data sets, with rules, subsets and exclusions of every kind."""
    datasets, subsets, exclusions = {}, {}, {}
    for number in range(draw(st.integers(1, max_datasets))):
        name = f"d{number}"
        sizes = draw(st.lists(st.integers(1, max_block), min_size=1, max_size=max_blocks))
        datasets[name] = make_dataset(name, sizes, seed=number, atoms=(1, draw(st.integers(1, 20))))
        size = len(datasets[name])
        if not plain and size > 3 and draw(st.booleans()):
            exclusions[name] = sorted(draw(st.sets(st.integers(0, size - 1), max_size=size // 2)))
        if not plain and size > 8 and draw(st.booleans()):
            subsets[name] = Subset(first=draw(st.integers(size // 2 + 1, size)), fraction=draw(st.floats(0.6, 1.0)))
    rule = draw(
        st.sampled_from(["temperature", "weights", "repeats"]).flatmap(
            lambda kind: (
                st.floats(0.7, 6.0).map(lambda t: {"temperature": t})
                if kind == "temperature"
                else st.lists(st.floats(0.3, 3.0), min_size=len(datasets), max_size=len(datasets)).map(
                    lambda values: {kind: dict(zip(datasets, values, strict=True))}
                )
            )
        )
    )
    return Mixture.from_datasets(datasets, **rule, subsets=subsets, exclusions=exclusions)


def owed_visits(member):
    """(len(dataset),) how often the mixing rule asks for each structure: index modulo the number that take part."""
    kept = np.concatenate(
        [member.selection.rows(b) + member.dataset.block_ptr[b] for b in range(member.dataset.num_blocks)]
    )
    visits = np.zeros(len(member.dataset), int)
    np.add.at(visits, kept[np.arange(member.samples) % len(kept)], 1)
    return visits


def identities(batch):
    """(data set, structure) of each structure of a batch."""
    return list(zip(batch.dataset_index.tolist(), batch.structure_index.tolist(), strict=True))
