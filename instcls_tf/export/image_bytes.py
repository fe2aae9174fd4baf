"""Encoded images to pixels inside an exported model: no Python, and no error for a file that cannot be read.

JPEG, PNG, GIF (its first frame) and BMP, as TensorFlow decodes them. A header is looked at before anything is decoded,
because a small file can declare gigabytes (that of a GIF is of its screen, frames may be larger); a JPEG is turned as
its EXIF orientation says; what is transparent in a PNG is laid on the run's background.
"""

from __future__ import annotations

import tensorflow as tf

# Read past the end of a file that is cut off, so that every look at a header finds something.
_PADDING = b"\0" * 64
# Frame headers of all kinds of JPEG; 0xC4, 0xC8 and 0xCC lie between them and mean something else.
_FRAMES = [marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)]
_ORIENTATION_TAG, _SHORT = 0x0112, 3
# A file of filling bytes alone must not keep a server busy.
_MOST_SEGMENTS = 2048
_LARGEST_DIRECTORY = 512  # entries of EXIF; cameras write some dozens
_PNG, _JPEG, _GIF, _BMP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF8", b"BM"


def read_image(encoded: tf.Tensor, max_pixels: int, background: tuple[int, int, int]) -> tf.Tensor:
    """The pixels of one file, upright.

    Args:
      encoded: string scalar, the file's bytes.
      max_pixels: a file that declares more is not decoded.
      background: RGB in 0..255, beneath what is transparent.

    Returns:
      uint8 `[h, w, 3]`; `[0, 0, 3]` of what is no image, or a broken one.
    """
    data = tf.io.decode_raw(tf.strings.join([encoded, _PADDING]), tf.uint8)  # [bytes]
    height, width, orientation = _header(encoded, data)
    fits = (height > 0) & (width > 0) & (height <= max_pixels // tf.maximum(width, 1))
    image = tf.cond(fits, lambda: _decode_or_nothing(encoded, background), _nothing)
    return _turn_upright(image, orientation)


def _nothing() -> tf.Tensor:
    return tf.zeros([0, 0, 3], tf.uint8)


def _decode_or_nothing(encoded: tf.Tensor, background: tuple[int, int, int]) -> tf.Tensor:
    # A nested dataset is the one way to catch a decoder's error inside a graph.
    decode = tf.autograph.experimental.do_not_convert(lambda bytes_: _decode(bytes_, background))
    tried = tf.data.Dataset.from_tensors(encoded).map(decode).ignore_errors()
    image = tried.concatenate(tf.data.Dataset.from_tensors(_nothing())).take(1).get_single_element()
    return tf.ensure_shape(image, [None, None, 3])


def _decode(encoded: tf.Tensor, background: tuple[int, int, int]) -> tf.Tensor:
    def of_png() -> tf.Tensor:
        pixels = tf.io.decode_png(encoded, channels=4)
        is_opaque = tf.reduce_all(pixels[:, :, 3] == 255)
        return tf.cond(is_opaque, lambda: pixels[:, :, :3], lambda: _lay_on(pixels, background))

    def of_others() -> tf.Tensor:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    image = tf.cond(_begins(encoded, _PNG), of_png, of_others)
    return tf.ensure_shape(image, [None, None, 3])


def _lay_on(pixels: tf.Tensor, background: tuple[int, int, int]) -> tf.Tensor:
    """RGBA on a colour, row by row: as float32, a whole image would take four times as much memory."""

    def lay(row: tf.Tensor) -> tf.Tensor:
        row = tf.cast(row, tf.float32)
        opacity = row[:, 3:] / 255.0
        laid = row[:, :3] * opacity + (1.0 - opacity) * tf.cast(background, tf.float32)
        return tf.cast(laid + 0.5, tf.uint8)

    return tf.map_fn(lay, pixels, fn_output_signature=tf.TensorSpec([None, 3], tf.uint8))


def _begins(encoded: tf.Tensor, signature: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(signature)), signature)


def _header(encoded: tf.Tensor, data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Height, width and orientation (1 to 8) that a file declares; 0, 0, 1 of what is none of the four kinds."""
    one, none = tf.constant(1, tf.int64), tf.constant(0, tf.int64)
    little, big = True, False
    return tf.case(
        [
            (_begins(encoded, _JPEG), lambda: _jpeg_header(data)),
            (_begins(encoded, _PNG), lambda: (_number(data, 20, 4, big), _number(data, 16, 4, big), one)),
            (_begins(encoded, _GIF), lambda: (_number(data, 8, 2, little), _number(data, 6, 2, little), one)),
            (_begins(encoded, _BMP), lambda: (_bmp_height(data), _number(data, 18, 4, little), one)),
        ],
        default=lambda: (none, none, one),
    )


def _bmp_height(data: tf.Tensor) -> tf.Tensor:
    height = _number(data, 22, 4, True)  # negative if the rows are stored from the top
    return tf.where(height >= 2**31, 2**32 - height, height)


def _number(data: tf.Tensor, place: tf.Tensor | int, size: int, is_little: tf.Tensor | bool) -> tf.Tensor:
    """The unsigned number of `size` bytes at a place, int64; 0 where there are no such bytes."""
    place = tf.cast(place, tf.int64)
    place = tf.minimum(place, tf.size(data, tf.int64) - size)
    digits = tf.cast(data[place : place + size], tf.int64)
    digits = tf.where(is_little, tf.reverse(digits, [0]), digits)
    return tf.reduce_sum(digits * tf.constant([256**power for power in reversed(range(size))], tf.int64))


def _jpeg_header(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Follows the segments up to the first scan; every one of them says how long it is."""
    end = tf.size(data, tf.int64) - len(_PADDING)

    def goes_on(place: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        is_scan = _number(data, place + 1, 1, False) == 0xDA
        return (place + 4 <= end) & (_number(data, place, 1, False) == 0xFF) & ~is_scan

    def step(place: tf.Tensor, height: tf.Tensor, width: tf.Tensor, orientation: tf.Tensor) -> tuple[tf.Tensor, ...]:
        marker, length = _number(data, place + 1, 1, False), _number(data, place + 2, 2, False)
        is_frame = tf.reduce_any(marker == tf.constant(_FRAMES, tf.int64))
        is_exif = (marker == 0xE1) & (_number(data, place + 4, 6, False) == int.from_bytes(b"Exif\0\0", "big"))
        orientation = tf.cond(is_exif, lambda: _exif_orientation(data, place + 10), lambda: orientation)
        height = tf.where(is_frame, _number(data, place + 5, 2, False), height)
        width = tf.where(is_frame, _number(data, place + 7, 2, False), width)
        # Any number of 0xFF may stand before a marker.
        return place + tf.where(marker == 0xFF, tf.constant(1, tf.int64), 2 + length), height, width, orientation

    start = [tf.constant(value, tf.int64) for value in (2, 0, 0, 1)]
    _, height, width, orientation = tf.while_loop(goes_on, step, start, maximum_iterations=_MOST_SEGMENTS)
    return height, width, orientation


def _exif_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The orientation in a block of EXIF, which has the form of a TIFF file; 1 if it has none, or an unknown one."""
    is_little = _number(data, start, 1, False) == ord("I")
    directory = start + _number(data, start + 4, 4, is_little)
    count = tf.minimum(_number(data, directory, 2, is_little), _LARGEST_DIRECTORY)
    entries = directory + 2 + 12 * tf.range(count)  # [count]

    def value(entry: tf.Tensor) -> tf.Tensor:
        tag, kind = _number(data, entry, 2, is_little), _number(data, entry + 2, 2, is_little)
        found = _number(data, entry + 8, 2, is_little)
        is_it = (tag == _ORIENTATION_TAG) & (kind == _SHORT) & (found >= 1) & (found <= 8)
        return tf.where(is_it, found, upright)

    upright = tf.constant(1, tf.int64)
    found = tf.map_fn(value, entries, fn_output_signature=tf.int64)
    return tf.reduce_max(tf.concat([found, upright[None]], axis=0))


def _turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    def turned() -> tf.Tensor:
        pixels = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        rows = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8], tf.int64))
        pixels = tf.cond(rows, lambda: tf.reverse(pixels, [0]), lambda: pixels)
        columns = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7], tf.int64))
        return tf.cond(columns, lambda: tf.reverse(pixels, [1]), lambda: pixels)

    return tf.ensure_shape(tf.cond(orientation > 1, turned, lambda: image), [None, None, 3])
