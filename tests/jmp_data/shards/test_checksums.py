from hypothesis import given
from hypothesis import strategies as st

from jmp_data.shards.checksums import crc32c


def test_the_check_value_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(max_size=100), st.integers(0, 10))
def test_a_view_has_the_checksum_of_its_bytes(payload, start):
    assert crc32c(memoryview(payload)[start:]) == crc32c(payload[start:])
