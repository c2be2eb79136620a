"""Pictures of one's own: files as cameras write them, folders as people keep them, a run from end to end."""

import json
import math
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

import minires as mr
from minires.data import DataError, Dataset, load_pictures, read_image, shapes10
from minires.training.config import Config, read_config

RED, GREEN, BLUE = (200, 10, 20), (10, 200, 20), (20, 10, 200)


# ---- one picture: PNGs written out by hand


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, rows, *extra, interlaced=0):
    """A PNG; `rows` are its unpacked bytes, each row behind its filter type, `extra` further chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.fixture
def read(tmp_path):
    """read(bytes): the image that `read_image` makes of such a file."""

    def read_bytes(raw):
        (tmp_path / "a.png").write_bytes(raw)
        return read_image(tmp_path / "a.png")

    return read_bytes


@pytest.mark.parametrize("key", [0, 1, 2])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white_and_no_other(read, bits, key):
    """Columns of the greys 0, 1 and 2, one of which is transparent."""
    greys = np.repeat([0, 1, 2], 32)
    digits = "".join(f"{grey:0{bits}b}" for grey in greys)
    row = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    raw = png(96, 96, bits, 0, (b"\0" + row) * 96, (b"tRNS", struct.pack(">H", key)))
    seen = read(raw)[16, [3, 16, 28], 0]
    scale = 255 / (2**bits - 1)
    expected = [255 if grey == key else int(grey * scale) for grey in (0, 1, 2)]
    assert np.abs(seen.astype(int) - expected).max() <= 1


def test_the_transparent_colour_of_a_png_with_sixteen_bits(read):
    row = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x8000, 0, 0) * 16
    raw = png(32, 32, 16, 2, row * 32, (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    assert read(raw)[0, [0, 31]].tolist() == [[255, 255, 255], [128, 0, 0]]


HUGE = b"a\0\0" + zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "extra",
    [
        (b"zTXt", HUGE),
        (b"iCCP", HUGE),
        (b"iTXt", b"a\0\1\0\0\0" + HUGE[3:]),
        (b"iCCP", b"a\0\0nothing"),
        (b"gAMA", b""),
    ],
    ids=["text", "profile", "Unicode", "damaged profile", "damaged gamma"],
)
def test_what_the_pixels_do_not_need_is_not_read(read, extra):
    assert (read(png(1, 1, 8, 0, b"\0\x07", extra)) == 7).all()


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def rows_of(pixels, interlaced):
    """The unpacked bytes of a PNG, rows or Adam7's passes."""
    passes = [pixels[top::step_y, left::step_x] for left, top, step_x, step_y in ADAM7] if interlaced else [pixels]
    return b"".join(b"\0" + row.tobytes() for part in passes for row in part if row.size)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("h, w", [(1, 1), (1, 2), (3, 5), (9, 9), (32, 32)])
def test_a_png_with_all_its_rows_is_read_and_one_with_fewer_is_damaged(read, h, w, interlaced):
    pixels = np.random.default_rng(h).integers(0, 256, (h, w, 3), np.uint8)
    rows = rows_of(pixels, interlaced)
    image = read(png(w, h, 8, 2, rows, interlaced=interlaced))
    if h == 32:
        np.testing.assert_array_equal(image, pixels)
    for missing in (1, 1 + 3 * w):
        with pytest.raises(DataError, match="the image is damaged"):
            read(png(w, h, 8, 2, rows[:-missing], interlaced=interlaced))


@pytest.mark.parametrize("w, h", [(1, 65_501), (65_501, 1), (2, 70_000)])
def test_a_side_is_bounded_too(read, w, h):
    with pytest.raises(DataError, match="a.png: expected at most 89 million pixels, and 65,500 along a side; make"):
        read(png(w, h, 8, 0, b"\0"))


def test_the_longest_side_is_read(read):
    assert read(png(1, 65_500, 8, 0, b"\0\x07" * 65_500)).tolist() == np.full((32, 32, 3), 7).tolist()


def exif_of(*tags):
    """EXIF data with tags (number, type, four bytes), as in a TIFF file; type 2 is text, 3 and 4 are integers."""
    entries = b"".join(
        struct.pack("<HHI", number, type_, 4 if type_ == 2 else 1) + value for number, type_, value in tags
    )
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


STORED = Image.new("RGB", (32, 32), RED)
STORED.paste(BLUE, (0, 0, 16, 32))  # the left half


@pytest.mark.parametrize(
    "tag", [(0x011A, 2, b"72!\0"), (0x0213, 2, b"mid\0"), (0x0100, 2, b"400\0"), (0x8825, 3, b"\x07\0\0\0")]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_odd_exif_tag_is_no_damage(tmp_path, kind, tag):
    """The orientation, 6, is followed: what is stored at the left is on top."""
    path = tmp_path / f"a.{kind.lower()}"
    STORED.save(path, kind, exif=exif_of((0x0112, 3, b"\x06\0\0\0"), tag))
    image = read_image(path).astype(int)
    assert np.abs(image[4:12] - BLUE).max() < 30 and np.abs(image[20:28] - RED).max() < 30


@pytest.mark.parametrize("type_, value", [(2, b"six\0"), (3, b"\x09\0\0\0"), (4, b"\xff" * 4), (12, b"\xff" * 4)])
def test_an_orientation_that_is_none_is_ignored(tmp_path, type_, value):
    STORED.save(tmp_path / "a.png", exif=exif_of((0x0112, type_, value)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(STORED))


def test_metadata_that_cannot_be_read_are_ignored(tmp_path):
    Image.new("RGB", (32, 32), GREEN).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\x7f" + bytes(9))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - GREEN).max() < 5


# ---- images that are no uint8 of the right shape


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((32, 32, 3), np.int64),
    ],
    ids=lambda image: f"{image.dtype} {image.shape}",
)
def test_predict_and_normalise_refuse_other_images(tmp_path, image):
    run = tmp_path / "run"
    mr.fit(Config(model="resnet8", width=2, batch_size=10, epochs=1, threads=1), run, dataset=shapes10(20, 10))
    good = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"predict: images\[1\]: expected uint8 \(32, 32, 3\), 0..255, .* got "
    ) as error:
        mr.predict(run, [good, image])
    assert f"{image.dtype} {image.shape}" in str(error.value)
    with pytest.raises(ValueError, match=r"images\[0\]: expected uint8 \(32, 32, 3\).* got uint8 \(32, 3\)"):
        mr.predict(run, good)
    assert mr.predict(run, [Image.fromarray(good)]) == mr.predict(run, [good])
    _, normalise, _ = mr.load_run(run)
    with pytest.raises(ValueError, match=r"Normalise: images: expected uint8 \(N, 32, 32, 3\), 0..255, got"):
        normalise(image[None])


# ---- data sets made in Python

FIELDS = {
    "name": "fruit",
    "train_images": np.zeros((8, 32, 32, 3), np.uint8),
    "train_labels": np.array([0, 1] * 4),
    "test_images": np.zeros((2, 32, 32, 3), np.uint8),
    "test_labels": np.array([0, 1]),
    "classes": ("apple", "pear"),
}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"train_images": np.zeros((8, 64, 64, 3), np.uint8)},
            r"train_images: expected uint8 \(N, 32, 32, 3\).*64, 64",
        ),
        ({"train_images": np.zeros((8, 32, 32, 3))}, "train_images: expected uint8 .* got float64"),
        ({"test_images": np.zeros((2, 32, 32, 1), np.uint8)}, "test_images: expected uint8"),
        ({"test_images": None}, "test_images: expected uint8 .* got a NoneType"),
        ({"train_labels": np.array([0, 1])}, r"train_labels: expected 8 integers, got int64 \(2,\)"),
        ({"train_labels": np.zeros(8)}, "train_labels: expected 8 integers, got float64"),
        ({"train_labels": [0, 1] * 4}, "train_labels: expected 8 integers, got a list"),
        ({"train_labels": np.array(["apple", "pear"] * 4)}, "train_labels: expected 8 integers, got <U5"),
        ({"test_labels": np.array([0, 2])}, "test_labels: expected 0 to 1, .* got 0 to 2"),
        ({"test_labels": np.array([0, -1])}, "test_labels: expected 0 to 1, .* got -1 to 0"),
        ({"classes": ("apple",)}, "classes: expected two or more names"),
        ({"classes": ("apple", "apple")}, "classes: expected two or more names, each once"),
        ({"classes": (1, 2)}, "classes: expected two or more names"),
    ],
)
def test_a_data_set_that_cannot_be_trained_on_is_refused_at_once(change, message):
    assert Dataset(**FIELDS).source == "own"
    with pytest.raises(DataError, match=f"^Dataset: {message}"):
        Dataset(**{**FIELDS, **change})


SMALL = {"model": "resnet8", "width": 2, "batch_size": 4, "epochs": 1, "threads": 1}


@pytest.mark.parametrize("name", ["fruit", "cifar10", "shapes10", "auto", "no/such folder"])
def test_any_data_set_trains_and_no_command_takes_another_for_it(tmp_path, capsys, status_of, name):
    run = tmp_path / "run"
    mr.fit(Config(**SMALL), run, dataset=Dataset(**{**FIELDS, "name": name}))
    net, normalise, info = mr.load_run(run)
    assert (info["data"], info["classes"]) == (name, ["apple", "pear"]) and read_config(run).data == "own"
    assert [label for label, _ in mr.predict(run, FIELDS["test_images"])[0]] in (["apple", "pear"], ["pear", "apple"])
    for command in (["eval", run], ["train", "--resume", run]):
        capsys.readouterr()
        assert status_of(*command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "data set that was made in Python" in err and "mr.evaluate" in err


def test_a_data_set_without_test_images_is_refused_before_training(tmp_path):
    fields = {**FIELDS, "test_images": FIELDS["test_images"][:0], "test_labels": FIELDS["test_labels"][:0]}
    with pytest.raises(ValueError, match="dataset: expected one test image or more, got none"):
        mr.fit(Config(**SMALL), tmp_path / "run", dataset=Dataset(**fields))
    mr.fit(Config(**SMALL | {"val": True}), tmp_path / "run", dataset=Dataset(**fields))


# ---- folders


def write(folder, names, colour=RED, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, colour).save(folder / name)


@pytest.fixture
def fruit(tmp_path):
    write(tmp_path / "fruit" / "pear", [f"{k}.png" for k in range(10)], GREEN)
    write(tmp_path / "fruit" / "apple", [f"{k}.jpg" for k in range(12)], RED)
    return tmp_path / "fruit"


def kind_of(image):
    return "apple" if image[16, 16, 0] > image[16, 16, 1] else "pear"


def test_a_folder_for_each_class(fruit):
    data = load_pictures(fruit)
    assert (data.name, data.source, data.classes) == ("fruit", "pictures", ("apple", "pear"))
    assert np.bincount(data.train_labels).tolist() == [10, 8] and np.bincount(data.test_labels).tolist() == [2, 2]
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert images.shape[1:] == (32, 32, 3) and images.dtype == np.uint8
        assert [kind_of(image) for image in images] == [data.classes[label] for label in labels]
    assert 0 < data.train_labels[:9].sum() < 9, "the first few are of both classes"


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        write(tmp_path / part / "pear", [f"{k}.png" for k in range(count)], GREEN)
        write(tmp_path / part / "apple", [f"{k}.png" for k in range(2 * count)], RED)
    data = load_pictures(str(tmp_path))
    assert np.bincount(data.train_labels).tolist() == [6, 3] and np.bincount(data.test_labels).tolist() == [2, 1]
    write(tmp_path / "valid" / "pear", ["1.png"])
    with pytest.raises(DataError, match="valid: next to train and test"):
        load_pictures(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "test" / "plum")
    with pytest.raises(DataError, match="same classes in train and test, got apple, pear and apple, pear, plum"):
        load_pictures(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path / "train", ["1.png", "2.png"])
    write(tmp_path / "plane", ["1.png", "2.png"])
    assert load_pictures(tmp_path).classes == ("plane", "train")


def test_the_split_is_by_name_alone(tmp_path, fruit):
    """The test pictures of these names, written down: the same on every machine, in any order, at any time."""

    def tested(folder):
        write(tmp_path / folder / "b", ["1.png", "2.png"])
        data = load_pictures(tmp_path / folder)
        return sorted(
            int(image[16, 16, 0]) for image, k in zip(data.test_images, data.test_labels, strict=True) if k == 0
        )

    for folder, order in (("up", range(10)), ("down", reversed(range(10)))):
        for k in order:
            write(tmp_path / folder / "a", [f"IMG_{k}.png"], (10 * k, 0, 0))
    assert tested("up") == tested("down") == [30, 80]
    # "é" as one character, and as e with an accent, as macOS may write it
    for folder, name in (("one", "\u00e9"), ("two", "e\u0301")):
        for k in range(10):
            write(tmp_path / folder / f"a{name}", [f"{name}{k}.png"], (10 * k, 0, 0))
    assert tested("one") == tested("two")
    assert load_pictures(tmp_path / "one").classes == load_pictures(tmp_path / "two").classes == ("a\u00e9", "b")


def test_what_systems_put_into_folders_is_no_picture(fruit):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "pear/.DS_Store", "pear/._1.png", "apple/Thumbs.db"):
        (fruit / name).write_bytes(b"x")
    (fruit / ".ipynb_checkpoints").mkdir()
    data = load_pictures(fruit)
    assert len(data.train_images) + len(data.test_images) == 22 and data.classes == ("apple", "pear")


def test_bad_pictures_are_named_at_most_ten_with_the_count(fruit):
    (fruit / "notes.txt").write_text("x")
    (fruit / "pear" / "more").mkdir()
    (fruit / "pear" / "half.png").write_bytes((fruit / "pear" / "1.png").read_bytes()[:60])
    (fruit / "apple" / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError) as error:
        load_pictures(fruit)
    message = str(error.value)
    assert message.startswith(f"{fruit}: 4 can't be used, convert or remove them: ") and "\n" not in message
    for part in (
        "notes.txt: not in the folder of a class",
        "pear/more: a folder in that of a class",
        "pear/half.png: the image is damaged",
        "apple/a.heic: not a PNG or JPEG image; convert it",
    ):
        assert part.replace("/", str(fruit / "x")[-2]) in message
    for k in range(20):
        (fruit / "apple" / f"bad{k}.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r": 24 can't be used.*; and 14 more$") as error:
        load_pictures(fruit)
    assert len(str(error.value).split("; ")) - str(error.value).count("; convert it") == 11


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "expected a folder of pictures for each of two or more classes, got none"),
        (lambda root: write(root / "pear", ["1.png", "2.png"]), "of two or more classes, got pear"),
        (lambda root: (root / "empty").mkdir(), "empty: no pictures in it"),
        (lambda root: root.rmdir(), "no such folder"),
        (lambda root: [write(root / name, ["1.png"]) for name in "ab"], "a.1.png: expected two or more pictures"),
        (lambda root: [write(root / "a", ["1.png", "2.png"]), (root / "b").mkdir()], "b: no pictures in it"),
        (lambda root: [write(root / f"a{k}\u200b", ["1.png", "2.png"]) for k in range(2)], "class must be printable"),
    ],
)
def test_a_folder_that_holds_no_data_set(tmp_path, make, message):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message) as error:
        load_pictures(root)
    assert "\n" not in str(error.value)


# ---- settings for few pictures


@pytest.mark.parametrize(
    "images, batch_size, epochs",
    [(64, 16, 100), (8, 2, 100), (3, 1, 134), (1000, 128, 58), (5000, 128, 11), (50_000, 128, 8)],
)
def test_few_pictures_mean_small_batches_and_many_epochs(images, batch_size, epochs):
    config = Config.from_recipe(images=images)
    assert (config.batch_size, config.epochs) == (batch_size, epochs)
    assert config.lr == pytest.approx(0.2 * batch_size / 128)
    assert Config.from_recipe(images=images, epochs=3, batch_size=5, lr=1.0) == Config(epochs=3, batch_size=5, lr=1.0)
    assert Config.from_recipe("paper", images=images).steps == 64_000
    assert Config.from_recipe("paper", images=images).lr == pytest.approx(0.1 * batch_size / 128)


# ---- from end to end


def test_train_eval_predict_and_show_by_command(fruit, tmp_path, monkeypatch, capsys, status_of):
    monkeypatch.chdir(tmp_path)
    small = ("resnet8", "--width", 2, "--epochs", 2, "--threads", 1)
    assert status_of("train", *small, "--data", "fruit", "--out", "run") == 0
    out = capsys.readouterr().out
    assert "18 pictures to train on, 4 to test on, of 2 classes; batch size 4\n" in out
    config = read_config("run")
    assert (config.data, config.data_dir, config.batch_size) == ("pictures", str(fruit), 4)
    assert status_of("eval", "run") == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (
        f"4 test images of fruit: loss {row['test_loss']:.4f}, accuracy {row['test_acc']:.2%}"
        in capsys.readouterr().out
    )
    assert status_of("predict", "run", fruit / "pear" / "1.png") == 0
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]) == ["apple", "pear"]
    assert status_of("data", "show", "fruit") == 0 and (tmp_path / "fruit.png").exists()
    assert status_of("train", "--resume", "run") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    (fruit / "pear" / "9.png").rename(tmp_path / "9.png")
    write(fruit / "pear", ["9.png"], BLUE)
    assert status_of("train", "--resume", "run") == 2
    assert "run began with other training images than those of fruit as it is now" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
    (tmp_path / "9.png").replace(fruit / "pear" / "9.png")

    fruit.rename(tmp_path / "moved")
    capsys.readouterr()
    assert status_of("eval", "run") == 2 and "fruit: no such folder" in capsys.readouterr().err
    assert status_of("eval", "run", "--data-dir", "moved") == 0
    (tmp_path / "moved" / "pear").rename(tmp_path / "moved" / "plum")
    capsys.readouterr()
    assert status_of("eval", "run", "--data-dir", "moved") == 2
    assert "run: expected its classes, apple, pear, got apple, plum" in capsys.readouterr().err


def photograph(kind, seed):
    """Something round (a coin) or long (a leaf) on a noisy ground; sizes, places, angles, colours and light vary."""
    rng = np.random.default_rng([seed, kind])
    w, h = (int(n) for n in rng.integers(120, 500, 2))
    ground = rng.uniform(120, 230, 3) + rng.normal(0, 15, (h, w, 3)) + np.linspace(-30, 30, w)[:, None]
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    x, y = w / 2 + rng.uniform(-10, 10), h / 2 + rng.uniform(-10, 10)
    r, turn = min(w, h) * rng.uniform(0.25, 0.4), rng.uniform(0, math.pi)
    colour = tuple(int(n) for n in rng.uniform(0, 90, 3))
    t = np.linspace(0, 2 * math.pi, 60)
    u, v = r * np.cos(t), (r if kind == 1 else 0.35 * r) * np.sin(t)
    outline = [
        *zip(x + u * math.cos(turn) - v * math.sin(turn), y + u * math.sin(turn) + v * math.cos(turn), strict=True)
    ]
    ImageDraw.Draw(image).polygon(outline, fill=colour)
    return image


@pytest.mark.slow
def test_a_class_trains_on_forty_photographs_each_of_two_things(tmp_path, monkeypatch, capsys, status_of):
    monkeypatch.chdir(tmp_path)
    for kind, name in enumerate(("leaf", "coin")):
        (tmp_path / "things" / name).mkdir(parents=True)
        for k in range(40):
            picture, place = photograph(kind, k), tmp_path / "things" / name
            if k % 2:
                picture.save(place / f"IMG_{k:04}.JPG", quality=85)
            else:
                picture.convert("L" if k % 10 == 4 else "RGB").save(place / f"{k}.png")
    start = time.perf_counter()
    assert status_of("train", "--data", "things", "--out", "run") == 0
    print(capsys.readouterr().out.splitlines()[-2:], f"{time.perf_counter() - start:.0f} s")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (row["step"], row["epoch"]) == (400, 100) and row["test_acc"] >= 0.85
    assert status_of("eval", "run") == 0
    assert f"16 test images of things: loss {row['test_loss']:.4f}" in capsys.readouterr().out
    right = 0
    for kind, name in enumerate(("leaf", "coin")):
        for k in range(100, 105):
            photograph(kind, k).save("new.png")
            assert status_of("predict", "run", "new.png") == 0
            first, second = (line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3])
            assert {first, second} == {"leaf", "coin"}
            right += first == name
    assert right >= 8
