"""Images as rows of whatever shape the model has."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from headrace.server.batch.job import ImageOptions
from headrace.server.batch.pictures import check_wanted, fit_images
from headrace.server.batch.values import Unfit, Wanted
from headrace.server.errors import InvalidInput

Image = pytest.importorskip("PIL.Image", reason="not installed: pip install pillow")

PLAIN = ImageOptions()
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10  # height 2, width 3


@pytest.fixture
def picture(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    return str(path)


def wanted(datatype: str, *shape: int, lead: bool = False) -> Wanted:
    return Wanted("x", datatype, shape, ("image",), lead)


def fitted(path: str, want: Wanted, options: ImageOptions = PLAIN) -> np.ndarray:
    check_wanted(want, options)
    (row,) = fit_images([path], want, options)
    assert not isinstance(row, Unfit), row
    return row


def test_layouts(picture: str) -> None:
    assert np.array_equal(fitted(picture, wanted("UINT8", -1, -1, 3)), PIXELS)
    assert np.array_equal(fitted(picture, wanted("UINT8", 2, 3, 3)), PIXELS)
    planes = fitted(picture, wanted("UINT8", 3, -1, -1))
    assert np.array_equal(planes, PIXELS.transpose(2, 0, 1))
    assert planes.flags.c_contiguous
    assert fitted(picture, wanted("UINT8", 1, -1, -1)).shape == (1, 2, 3)
    assert fitted(picture, wanted("INT32", -1, -1)).shape == (2, 3)
    assert fitted(picture, wanted("UINT8", 4, 5, 7, lead=True)).shape == (1, 4, 5, 7)


def test_numbers(picture: str) -> None:
    scaled = fitted(picture, wanted("FP32", -1, -1, 3))
    assert scaled.dtype == np.float32
    assert np.allclose(scaled, PIXELS / 255)
    options = ImageOptions((0.5, 0.4, 0.3), (2.0,))
    normal = fitted(picture, wanted("FP16", 3, -1, -1), options)
    assert normal.dtype == np.float16
    expected = (PIXELS / 255 - np.array([0.5, 0.4, 0.3])) / 2
    assert np.allclose(normal, expected.transpose(2, 0, 1), atol=1e-3)


def test_a_file_as_it_is(picture: str) -> None:
    for shape in ((), (1,), (-1,)):
        row = fitted(picture, wanted("BYTES", *shape))
        assert row.shape == (1,) * len(shape)
        assert row.item() == pathlib.Path(picture).read_bytes()


def test_upright(tmp_path: pathlib.Path) -> None:
    """Cameras store how they were held beside the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = tmp_path / "turned.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    assert fitted(str(path), wanted("UINT8", -1, -1, 3)).shape == (3, 2, 3)


def test_files_that_are_no_images(tmp_path: pathlib.Path, picture: str) -> None:
    """Each is a row that has none; the others are not harmed."""
    whole = pathlib.Path(picture).read_bytes()
    files = []
    for name, content in (("empty", b""), ("text", b"no image"), ("cut", whole[: len(whole) // 2])):
        files.append(tmp_path / f"{name}.png")
        files[-1].write_bytes(content)
    names = [*map(str, files), str(tmp_path / "none.png"), picture]
    *bad, good = fit_images(names, wanted("UINT8", -1, -1, 3), PLAIN)
    assert all(
        isinstance(row, Unfit) and row.message.startswith("expected an image") for row in bad
    )
    assert not isinstance(good, Unfit)


@pytest.mark.parametrize(
    ("want", "options", "said"),
    [
        (wanted("FP32", 5, 5, 5), PLAIN, r"the model wants FP32 of shape \[5, 5, 5\]"),
        (wanted("FP32", 4), PLAIN, "expected numbers of shape"),
        (wanted("BOOL", 3, 2, 2), PLAIN, "the model wants BOOL"),
        (wanted("INT8", 3, 2, 2), PLAIN, "INT8 has no room for pixels"),
        (wanted("FP32", 3, 2, 2), ImageOptions((0.1, 0.2)), "--image-mean: expected 1 or 3"),
    ],
)
def test_inputs_that_are_no_images(want: Wanted, options: ImageOptions, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_wanted(want, options)
