"""Pictures of your own: a PNG or JPEG file as the input of a net, folders of them as a data set.

PNG's chunks, colour types and passes: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minires.data.dataset import DataError, Dataset
from minires.files import digest

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIZE = 32  # height and width of a net's input
MAX_FILE_BYTES = 300_000_000
MAX_PIXELS = 89_000_000
MAX_SIDE = 65_500  # the longest that JPEG allows; each row costs memory, however short it is


# ---- one picture


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A PNG or JPEG file as the input of a net: uint8 (32, 32, 3).

    The picture is rotated according to its EXIF orientation, cropped to the largest central square, and resized with an
    antialiased bicubic filter. Grey and palette pictures are converted to RGB; transparent parts become white.

    Raises DataError, in one line, if the file is missing, damaged, too large, or neither PNG nor JPEG.
    """
    try:
        return _read(Path(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__


def _read(path: Path) -> np.ndarray:
    """What `read_image` returns. Errors don't name the file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if path.is_dir():
            raise DataError("expected a picture, got a folder; name the pictures in it, as FOLDER/*.png")
        if not path.is_file():
            raise DataError("there is no such file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"expected at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    is_png = raw.startswith(PNG_SIGNATURE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of many pixels, which are counted below
            with Image.open(io.BytesIO(essential_chunks(raw) if is_png else raw), formats=("PNG", "JPEG")) as file:
                if file.width * file.height > MAX_PIXELS or max(file.size) > MAX_SIDE:
                    raise Image.DecompressionBombError
                image = _upright(file)
                bits = raw[24] if is_png else 8
                fitted = ImageOps.fit(_as_rgba(image, bits), (SIZE, SIZE), Image.Resampling.BICUBIC)
        if is_png:
            _check_rows(raw)
    except UnidentifiedImageError:
        raise DataError("not a PNG or JPEG image; convert it to one of them") from None
    except Image.DecompressionBombError:
        limits = f"{MAX_PIXELS // 10**6} million pixels, and {MAX_SIDE:,} along a side"
        raise DataError(f"expected at most {limits}; make the image smaller") from None
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise DataError(f"the image is damaged: {str(error)[:200]}") from error
    white = Image.new("RGBA", fitted.size, "white")
    return np.asarray(Image.alpha_composite(white, fitted).convert("RGB"))


def _upright(image: Picture) -> Picture:
    """The picture, turned and mirrored as its EXIF orientation (2 to 8) asks."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(int(image.getexif().get(0x0112, 1)))
    except Exception:  # damaged metadata are no reason to refuse the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _as_rgba(image: Picture, bits: int) -> Picture:
    """The picture in red, green, blue and opacity. bits: of a number in the file.

    The transparent colour of a PNG is given in numbers of the file, which Pillow doesn't follow for all `bits`.
    """
    from PIL import Image

    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8)
        opacity = np.full_like(grey, 255) if transparent is None else np.where(wide == transparent, 0, 255)
        return Image.fromarray(np.stack([grey, grey, grey, opacity.astype(np.uint8)], axis=-1))
    if transparent is not None and image.mode == "L" and bits < 8:
        image.info["transparency"] = transparent * 255 // (2**bits - 1)
    if transparent is not None and image.mode == "RGB" and bits == 16:  # nearest of what Pillow keeps
        image.info["transparency"] = tuple(number >> 8 for number in transparent)
    return image.convert("RGBA")


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ESSENTIAL = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
NUMBERS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
WITHOUT_PASSES = [(0, 0, 1, 1)]  # first column and row of a pass, and the steps from one to the next
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk of a PNG; the bytes are length (4), name (4), data and checksum (4)."""
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        yield png[start + 4 : start + 8], png[start:end]
        start = end


def essential_chunks(png: bytes) -> bytes:
    """A PNG without what its pixels don't need: texts and colour profiles, which may be damaged or huge."""
    return PNG_SIGNATURE + b"".join(chunk for name, chunk in _chunks(png) if name in ESSENTIAL)


def _check_rows(png: bytes) -> None:
    """Raise ValueError if a PNG has fewer rows than its header says; Pillow would leave them black."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    expected = 0
    for left, top, step_x, step_y in ADAM7 if interlaced else WITHOUT_PASSES:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0:
            expected += max(rows, 0) * (1 + -(-columns * NUMBERS[colour] * bits // 8))  # a row begins with its filter
    found, unpacker = 0, zlib.decompressobj()
    for name, chunk in _chunks(png):
        packed = chunk[8:-4] if name == b"IDAT" else b""
        while packed and found < expected:
            found += len(unpacker.decompress(packed, 1 << 20))
            packed = unpacker.unconsumed_tail
    if found + len(unpacker.flush()) < expected:
        raise ValueError("its rows end early")


# ---- a folder of pictures

TEST_PART = 5  # one picture in five is for testing
MAX_NAMED = 10  # problems in an error
OF_WINDOWS = ("Thumbs.db", "desktop.ini")  # which Explorer writes; the Finder's names begin with a dot

Classes = dict[str, list[Path]]  # the pictures of each class
Problems = list[tuple[Path, str]]


def load_pictures(folder: str | os.PathLike[str]) -> Dataset:
    """The data set in a folder that holds a folder of PNG or JPEG pictures for each class, named after the class.

    If the folder holds `train` and `test`, each of them has such folders. If not, a fifth of each class is for testing:
    the pictures whose names have the smallest SHA-256, so that the split is the same everywhere. Each picture is
    cropped and resized as `read_image` says.

    Nothing is skipped but what systems put there unasked (names that begin with a dot, Thumbs.db, desktop.ini). Raises
    DataError, which names at most ten of them, if anything else is not a picture in the folder of a class.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected one that holds a folder of pictures for each class; if it was moved, "
            "name it with --data-dir"
        )
    problems: Problems = []
    parts = [root / "train", root / "test"]
    if all(part.is_dir() for part in parts):
        problems += [(entry, "next to train and test") for entry in _entries(root) if entry not in parts]
        train, test = (_find_pictures(part, problems) for part in parts)
        if train.keys() != test.keys():
            raise DataError(
                f"{folder}: expected the same classes in train and test, got {_list(train)} and {_list(test)}"
            )
    else:
        train, test = _split(_find_pictures(root, problems), problems)
    if len(train) < 2 and not problems:
        raise DataError(
            f"{folder}: expected a folder of pictures for each of two or more classes, got {_list(train)}; "
            "make a folder in it for each class"
        )

    train_images, train_labels = _read_all(train, problems)
    test_images, test_labels = _read_all(test, problems)
    if problems:
        named = "; ".join(f"{path.relative_to(root)}: {problem}" for path, problem in problems[:MAX_NAMED])
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise DataError(f"{folder}: {len(problems)} can't be used, convert or remove them: {named}{more}")
    name = root.resolve().name or "pictures"
    return Dataset(name, train_images, train_labels, test_images, test_labels, tuple(sorted(train)), "pictures")


def _read_all(pictures: Classes, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, in an order that mixes the classes, for whoever takes the first few."""
    from tqdm import tqdm

    labelled = [(path, label) for label, name in enumerate(sorted(pictures)) for path in pictures[name]]
    labelled.sort(key=lambda item: _digest_of_name(item[0]))
    images = []
    for path, _ in tqdm(labelled, "reading pictures", unit="", leave=False, disable=None):
        try:
            images.append(_read(path))
        except DataError as error:
            problems.append((path, str(error)))
    return np.array(images), np.array([label for _, label in labelled])


def _find_pictures(folder: Path, problems: Problems) -> Classes:
    """The files of each class; whatever has no class goes to `problems`."""
    found: Classes = {}
    for entry in _entries(folder):
        if not entry.is_dir():
            problems.append((entry, "not in the folder of a class"))
        elif not entry.name.isprintable():
            problems.append((entry, "the name of a class must be printable"))
        else:
            files = [inner for inner in _entries(entry) if not inner.is_dir()]
            problems += [(inner, "a folder in that of a class") for inner in _entries(entry) if inner.is_dir()]
            problems += [] if files else [(entry, "no pictures in it")]
            found.setdefault(_same_everywhere(entry.name), []).extend(files)
    return found


def _split(pictures: Classes, problems: Problems) -> tuple[Classes, Classes]:
    """Training and test pictures of each class."""
    train, test = {}, {}
    for name, files in pictures.items():
        if len(files) == 1:
            problems.append((files[0], "expected two or more pictures of its class, one for testing"))
        ordered = sorted(files, key=_digest_of_name)
        cut = max(1, len(files) // TEST_PART)
        train[name], test[name] = ordered[cut:], ordered[:cut]
    return train, test


def _entries(folder: Path) -> list[Path]:
    """What a user put into a folder."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OF_WINDOWS)


def _same_everywhere(name: str) -> str:
    """The name as all systems read it: some write an accented letter as two characters."""
    return unicodedata.normalize("NFC", name)


def _digest_of_name(path: Path) -> str:
    return digest(_same_everywhere(path.name).encode(errors="surrogateescape"))


def _list(classes: Classes) -> str:
    """Some names, for an error."""
    return ", ".join(sorted(classes)[:MAX_NAMED]) + (", ..." if len(classes) > MAX_NAMED else "") if classes else "none"
