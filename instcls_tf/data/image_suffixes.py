"""What files are called that hold images: those that are read, and those that are not and are said to be there."""

from __future__ import annotations

from PIL import features

from instcls_tf.config import PretrainConfig

_NEWER = ("avif", (".avif",)), ("jpg_2000", (".jp2", ".j2k", ".jpx", ".jpf"))
# What folders were searched for before the others were read: a run that began then goes on without the others.
FIRST_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
IMAGE_SUFFIXES = (
    *FIRST_SUFFIXES,
    *(".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".apng"),
    *(".tif", ".tiff", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".qoi", ".psd"),
    # Pillow can be built without these.
    *(suffix for feature, suffixes in _NEWER if features.check(feature) for suffix in suffixes),
)
# Images in what is not read here: newer formats, those that nothing in their first bytes tells apart, drawings, and
# what cameras write before it is developed.
_OTHERS = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".jps", ".tga"),
    *(".dds", ".pcx", ".exr", ".hdr", ".dib", ".icns", ".svg", ".xcf", ".dcm"),
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
UNREAD_SUFFIXES = tuple(suffix for suffix in _OTHERS if suffix not in IMAGE_SUFFIXES)


def unread_sentence(counts: dict[str, int], read: int) -> str:
    """What a user is told about images that are not read: a warning if they are more than a run takes of bad ones.

    Args:
      counts: files by suffix; not empty.
      read: how many others there are, which are read.
    """
    unread, suffixes = sum(counts.values()), ", ".join(sorted(counts))
    are_many = read > 0 and unread > PretrainConfig.max_bad_fraction * (unread + read)
    are, them = ("is", "it") if unread == 1 else ("are", "them")
    return (
        f"{'warning: ' if are_many else ''}{unread:,} of {unread + read:,} images ({suffixes}) {are} not read by this"
        f" installation: convert {them} to JPEG"
    )
