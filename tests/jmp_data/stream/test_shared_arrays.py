import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest

from jmp_data.stream.shared_arrays import SharedReader, SharedWriter, read_arrays, receive, send, write_arrays

ARRAYS = {
    "floats": np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32),
    "bools": np.array([True, False, True]),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(7),
}


def test_arrays_arrive_as_they_were_and_can_be_written():
    header, descriptor = write_arrays(ARRAYS)
    mapped = read_arrays(header, descriptor)
    os.close(descriptor)
    for name, array in ARRAYS.items():
        assert mapped[name].dtype == array.dtype
        assert np.array_equal(mapped[name], array)
    mapped["floats"] += 1.0
    assert np.array_equal(mapped["floats"], ARRAYS["floats"] + 1.0)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_stays_open():
    before = open_descriptors()
    kept = []
    for _ in range(50):
        header, descriptor = write_arrays(ARRAYS)
        kept.append(read_arrays(header, descriptor))
        os.close(descriptor)
    assert open_descriptors() == before
    assert np.array_equal(kept[0]["floats"], ARRAYS["floats"]), "while the memory is still there"


def test_memory_is_unmapped_with_its_last_array():
    def mappings():
        return Path("/proc/self/maps").read_text().count("jmp-data")

    header, descriptor = write_arrays(ARRAYS)
    part = read_arrays(header, descriptor)["floats"][3:5]
    os.close(descriptor)
    held = mappings()
    assert held >= 1
    del part
    assert mappings() == held - 1


def test_messages_carry_descriptors_and_tell_when_the_other_side_is_gone():
    ours, theirs = socket.socketpair()
    header, descriptor = write_arrays(ARRAYS)
    send(ours, {"header": header}, descriptor)
    send(ours, "plain")
    os.close(descriptor)
    message, received = receive(theirs)
    assert np.array_equal(read_arrays(message["header"], received)["bools"], ARRAYS["bools"])
    os.close(received)
    assert receive(theirs) == ("plain", None)
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


def pass_on(writer, reader, arrays):
    """Write, read, and tell whether new memory was needed."""
    writer.released(reader.released())
    parcel, descriptor = writer.write(arrays)
    found = reader.read(parcel, descriptor)
    if descriptor is not None:
        os.close(descriptor)
    return found, descriptor is not None


def test_memory_that_was_let_go_is_written_again():
    writer, reader = SharedWriter(), SharedReader()
    fresh = [pass_on(writer, reader, {"x": np.full(1000 + 10 * i, i)})[1] for i in range(10)]
    assert fresh == [True] + [False] * 9


def test_what_the_reader_holds_is_never_written_over():
    generator = random.Random(0)
    writer, reader, held = SharedWriter(), SharedReader(), []
    before = open_descriptors()
    for number in range(400):
        found, _ = pass_on(writer, reader, {"x": np.full(generator.randrange(5000), number), "y": np.array([number])})
        held.append((number, found.pop(generator.choice("xy"))))
        while len(held) > generator.randrange(1, 12):
            held.pop(generator.randrange(len(held)))
        assert all((array == value).all() for value, array in held)
    assert open_descriptors() == before


def test_memory_that_nobody_uses_is_given_back():
    writer, reader = SharedWriter(), SharedReader()
    held = [pass_on(writer, reader, {"x": np.zeros(100)})[0] for _ in range(50)]
    mapped = Path("/proc/self/maps").read_text().count("jmp-data")
    held.clear()
    for _ in range(2):
        pass_on(writer, reader, {"x": np.zeros(100)})
    assert Path("/proc/self/maps").read_text().count("jmp-data") < mapped - 80, "both sides had mapped each of 50"


def test_what_is_made_in_claimed_memory_goes_without_a_copy():
    writer, reader, before = SharedWriter(), SharedReader(), open_descriptors()
    for number in range(5):
        writer.released(reader.released())
        words = writer.claim(1000)
        words[:] = np.arange(1000) + number
        found, fresh = pass_on(writer, reader, {"x": words[10:30].reshape(2, 10), "y": words[500:]})
        assert fresh == (number == 0)
        assert (found["x"] == np.arange(10, 30).reshape(2, 10) + number).all()
        words[500] = -1
        assert found["y"][0] == -1
        del found, words
    assert open_descriptors() == before


@pytest.mark.parametrize("fresh", [True, False])
def test_arrays_from_elsewhere_beside_claimed_memory_are_copied_with_it(fresh):
    writer, reader, before = SharedWriter(), SharedReader(), open_descriptors()
    if not fresh:
        pass_on(writer, reader, {"x": np.zeros(2000)})
        writer.released(reader.released())
    words = writer.claim(1000)
    words[:] = np.arange(1000)
    found, _ = pass_on(writer, reader, {"elsewhere": np.ones(700), "x": words[::-1], "y": words[3:]})
    words[:] = 0
    assert (found["x"] == np.arange(1000)[::-1]).all()
    assert (found["y"] == np.arange(3, 1000)).all()
    assert (found["elsewhere"] == 1).all()
    assert open_descriptors() == before


def test_claimed_memory_that_is_not_used_is_given_back_or_kept_for_later():
    writer, reader, before = SharedWriter(), SharedReader(), open_descriptors()
    writer.claim(1000)
    writer.abandon()
    assert pass_on(writer, reader, {"x": np.zeros(10)})[1]
    writer.released(reader.released())
    writer.claim(5)
    writer.abandon()
    assert not pass_on(writer, reader, {"x": np.zeros(10)})[1]
    assert open_descriptors() == before
