"""What files are called that hold images: those that are read, and those that are not and are said to be there."""

from __future__ import annotations

from PIL import features

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


def unread_sentence(counts: dict[str, int]) -> str:
    """What a user is told about images that are not read.

    Args:
      counts: files by suffix; not empty.
    """
    total, suffixes = sum(counts.values()), ", ".join(sorted(counts))
    kinds = "suffix" if len(counts) == 1 else "suffixes"
    if total == 1:
        return f"1 file with {kinds} {suffixes} is an image that this installation does not read: convert it to JPEG"
    return (
        f"{total} files with {kinds} {suffixes} are images that this installation does not read: convert them to JPEG"
    )
