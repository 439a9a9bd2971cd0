"""Media between processes."""

import msgspec
import numpy as np
import pytest

from app.core.media import Array, Media


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_arrays_come_as_they_were_sent(dtype: str, shape: tuple[int, ...]) -> None:
    sent = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    media = Media(b"\x00\xff", {"values": Array.of(sent.T)}, 7)
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(media), type=Media)
    assert received == media
    array = received.arrays["values"].numpy()
    assert array.dtype == sent.dtype
    np.testing.assert_array_equal(array, sent.T)
