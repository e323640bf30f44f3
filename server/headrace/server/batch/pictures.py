"""Images as rows: decoded by Pillow, which comes with the extra `batch`, and laid out as the model
has them."""

from __future__ import annotations

import importlib.util
import io
import pathlib
from collections.abc import Sequence

import numpy as np

from headrace.inference.tensors import DATATYPES, Array
from headrace.server.batch.job import ImageOptions
from headrace.server.batch.values import Fitted, Unfit, Wanted, to_bfloat16
from headrace.server.errors import ConfigurationError, InvalidInput

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# What the only column of images is called.
COLUMN = "image"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def need_pillow() -> None:
    """Raises ConfigurationError where Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError(
            "images need Pillow, which comes with an extra: pip install 'headrace[batch]'"
        )


def check_wanted(wanted: Wanted, options: ImageOptions) -> None:
    """Raises InvalidInput where no image can become this input."""
    if wanted.datatype == "BYTES":
        return
    channel_axis, _, _ = _layout(wanted)
    channels = wanted.shape[channel_axis] if len(wanted.shape) == 3 else 1
    target = DATATYPES[wanted.datatype].numpy
    if target.kind in "iu" and wanted.datatype != "BF16" and np.iinfo(target).max < 255:
        raise InvalidInput(f"input '{wanted.input}': {wanted.datatype} has no room for pixels")
    for name, values in (("--image-mean", options.mean), ("--image-std", options.std)):
        if len(values) not in (1, channels):
            raise InvalidInput(f"{name}: expected 1 or {channels} numbers, got {len(values)}")


def fit_images(files: Sequence[str], wanted: Wanted, options: ImageOptions) -> Fitted:
    """For each file the tensor that the input wants, or why there is none.

    An input of BYTES gets the file as it is. Others get the pixels, upright, in the channels that
    the input has, stretched to its height and width where it has them.
    """
    from PIL import Image

    rows: Fitted = []
    for name in files:
        try:
            data = pathlib.Path(name).read_bytes()
            rows.append(
                _bytes(data, wanted)
                if wanted.datatype == "BYTES"
                else _pixels(data, wanted, options)
            )
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            rows.append(Unfit(COLUMN, f"expected an image, got what cannot be read: {error}"))
    return rows


def _bytes(data: bytes, wanted: Wanted) -> Array:
    if wanted.shape not in ((), (1,), (-1,)):
        raise InvalidInput(
            f"input '{wanted.input}': expected one element of BYTES for each image, the model "
            f"wants shape {list(wanted.shape)}"
        )
    array = np.empty((1,) * (len(wanted.shape) + wanted.lead), object)
    array[...] = data
    return array


def _pixels(data: bytes, wanted: Wanted, options: ImageOptions) -> Array:
    from PIL import Image, ImageOps

    channel_axis, height, width = _layout(wanted)
    channels = wanted.shape[channel_axis] if len(wanted.shape) == 3 else 1
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    size = (
        image.width if wanted.shape[width] == -1 else wanted.shape[width],
        image.height if wanted.shape[height] == -1 else wanted.shape[height],
    )
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = _numbers(np.asarray(image).reshape(size[1], size[0], channels), wanted, options)
    if len(wanted.shape) == 2:
        pixels = pixels[:, :, 0]
    elif channel_axis == 0:
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return pixels[np.newaxis] if wanted.lead else pixels


def _numbers(pixels: Array, wanted: Wanted, options: ImageOptions) -> Array:
    target = DATATYPES[wanted.datatype].numpy
    if target.kind in "iu" and wanted.datatype != "BF16":
        return pixels.astype(target)
    mean, std = (np.array(values, np.float32) for values in (options.mean, options.std))
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return to_bfloat16(scaled) if wanted.datatype == "BF16" else scaled.astype(target)


def _layout(wanted: Wanted) -> tuple[int, int, int]:
    """The axes of a row for channels, height and width. Raises InvalidInput where the shape is not
    that of an image."""
    shape = wanted.shape
    if wanted.datatype != "BOOL":
        if len(shape) == 2:
            return -1, 0, 1
        if len(shape) == 3 and shape[0] in _MODES:
            return 0, 1, 2
        if len(shape) == 3 and shape[2] in _MODES:
            return 2, 0, 1
    raise InvalidInput(
        f"input '{wanted.input}': expected numbers of shape [channels, height, width], [height, "
        f"width, channels] or [height, width] with 1, 3 or 4 channels, or BYTES; the model wants "
        f"{wanted.datatype} of shape {list(shape)}"
    )
