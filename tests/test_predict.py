"""From an image file to probabilities: reading, cropping, resizing, classifying, printing, plotting."""

import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import minires as mr
from minires import plots
from minires.data import read_image
from minires.training.folder import MODEL
from minires.training.predict import predict
from minires.training.weights import save_weights

CLASSES = ["ant", "bee", "cow", "dog", "eel", "fly", "gnu"]
RED, GREEN, BLUE = (200, 10, 20), (10, 200, 20), (20, 10, 200)


def noise(h, w, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, channels), np.uint8)


@pytest.fixture
def run(tmp_path):
    """A small net with random weights and running statistics, and its run folder as `train` leaves it."""
    rng = np.random.default_rng(1)
    net = mr.build("resnet8", seed=1, width=4, shortcut="B", classes=len(CLASSES))
    net.fc.weight.data[...] = rng.normal(0, 1, net.fc.weight.shape)
    for name, array in net.named_buffers():
        array[...] = rng.uniform(0.5, 2, array.shape) if "var" in name else rng.normal(0, 0.5, array.shape)
    mean, scale = rng.uniform(100, 150, (32, 32, 3)), rng.uniform(0.01, 0.03, (32, 32, 3))
    info = {
        "model": "resnet8",
        "shortcut": "B",
        "width": 4,
        "data": "animals",
        "classes": CLASSES,
        "mean": mean.tolist(),
        "scale": scale.tolist(),
    }
    folder = tmp_path / "run"
    folder.mkdir()
    save_weights(net, folder / MODEL, info)
    return SimpleNamespace(folder=folder, net=net, mean=mean, scale=scale)


def softmax_of(run, image):
    """Probabilities of the net that `run` was made of, in float64 from its logits on."""
    run.net.eval()
    x = ((image - run.mean) * run.scale).astype(np.float32)[None]
    z = run.net(mr.Tensor(x)).data[0].astype(np.float64)
    return np.exp(z) / np.exp(z).sum()


# ---- classes and probabilities


def test_predict_is_the_softmax_of_the_logits_most_probable_first(run, device):
    images = [noise(32, 32, seed=k) for k in range(3)]
    found = predict(run.folder, images, top=len(CLASSES), device=device)
    assert len(found) == 3
    for image, classes in zip(images, found, strict=True):
        p = softmax_of(run, image)
        assert [name for name, _ in classes] == [CLASSES[k] for k in np.argsort(-p)]
        np.testing.assert_allclose([value for _, value in classes], np.sort(p)[::-1], rtol=1e-4)
    assert found[0] != found[1]


def test_predict_gives_five_classes_or_as_many_as_asked_for_or_there_are(run):
    all_classes = predict(run.folder, [noise(32, 32)], top=99)[0]
    assert len(all_classes) == len(CLASSES)
    assert predict(run.folder, [noise(32, 32)])[0] == all_classes[:5]
    assert predict(run.folder, [noise(32, 32)], top=2)[0] == all_classes[:2]
    with pytest.raises(ValueError, match="top: expected a positive integer, got 0"):
        predict(run.folder, [noise(32, 32)], top=0)


# ---- reading an image


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_of_the_right_size_is_read_unchanged(tmp_path, mode):
    pixels = noise(32, 32)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)


@pytest.mark.parametrize("h, w", [(32, 50), (50, 32), (32, 33), (96, 97), (200, 64), (64, 200), (20, 30)])
def test_the_largest_square_in_the_middle_is_taken(tmp_path, h, w):
    """Red is the column of a pixel and green the row, 0 to 255 from edge to edge."""
    red, green = np.meshgrid(np.linspace(0, 255, w), np.linspace(0, 255, h))
    pixels = np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png").astype(float)
    side = min(h, w)
    centre = (np.arange(32) + 0.5) * side / 32 - 0.5  # of each new pixel, in pixels of the square
    columns, rows = (255 * (centre + (n - side) / 2) / (n - 1) for n in (w, h))
    inner = slice(2, -2)  # at the edges of the image the filter sees one side only
    assert np.abs(image[..., 0] - columns)[:, inner].max() < 1.5
    assert np.abs(image[..., 1] - rows[:, None])[inner].max() < 1.5


@pytest.mark.parametrize("h, w", [(1, 9), (9, 1), (1, 1), (2, 3000)])
def test_the_strangest_shapes_are_read(tmp_path, h, w):
    Image.fromarray(np.full((h, w, 3), GREEN, np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.full((32, 32, 3), GREEN))


def test_a_fine_pattern_becomes_its_mean(tmp_path):
    """A board of black and white pixels: every 4th pixel alone would be all black."""
    board = np.indices((128, 128)).sum(axis=0) % 2 * np.uint8(255)
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png").astype(float) - 127.5).max() < 8


@pytest.mark.parametrize("size", [20, 33, 80, 131])
def test_resizing_is_what_pytorch_calls_bicubic_with_antialias(tmp_path, size):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    pixels = noise(size, size) // 4 + 96  # so that no overshoot meets 0 or 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = torch.tensor(pixels, dtype=torch.float64).permute(2, 0, 1)[None]
    y = torch.nn.functional.interpolate(x, (32, 32), mode="bicubic", antialias=True, align_corners=False)
    want = y[0].permute(1, 2, 0).numpy()
    assert np.abs(read_image(tmp_path / "a.png") - want).max() < 2  # Pillow rounds after each direction


UPRIGHT = np.zeros((32, 32, 3), np.uint8)
UPRIGHT[:16, :16], UPRIGHT[:16, 16:], UPRIGHT[16:, :16], UPRIGHT[16:, 16:] = RED, GREEN, BLUE, (250, 250, 250)
STORED = {  # what a camera writes, and the EXIF orientation it records, for an image that is UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_the_exif_orientation_is_followed(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    picture = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    picture.save(path, exif=exif, quality=95, subsampling=0)  # a PNG ignores the last two
    assert np.abs(read_image(path).astype(int) - UPRIGHT).max() <= (0 if kind == "png" else 12)


GREY = noise(32, 32, 1, seed=3)[..., 0]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1"])
def test_grey_palette_and_black_and_white_become_rgb(tmp_path, mode):
    grey = np.where(GREY > 127, np.uint8(255), np.uint8(0)) if mode == "1" else GREY
    picture = Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.mode == mode
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=-1))


def test_sixteen_bits_become_eight(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 256 + 77).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([GREY] * 3, axis=-1))


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() < 8


def test_what_is_transparent_becomes_white(tmp_path):
    pixels = np.full((64, 64, 4), (*RED, 255), np.uint8)
    pixels[:32], pixels[32:48] = (0, 0, 0, 0), (*RED, 128)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png").astype(int)
    assert (image[:14] == 255).all() and np.abs(image[26:] - RED).max() <= 1
    half = np.array(RED) * 128 / 255 + 127
    assert np.abs(image[18:22] - half).max() <= 1.5

    palette = Image.fromarray(np.repeat([[0, 1]], 32, axis=0).repeat(16, axis=1).astype(np.uint8), "L")
    palette = palette.convert("P")
    palette.putpalette([*RED, *GREEN])
    palette.save(tmp_path / "b.png", transparency=0)
    image = read_image(tmp_path / "b.png")
    assert (image[:, :16] == 255).all() and (image[:, 16:] == GREEN).all()


# ---- files that are no image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width, height):
    """A few hundred bytes that claim to be an image of any size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")


def saved(tmp_path, kind):
    Image.fromarray(noise(60, 60)).save(tmp_path / f"whole.{kind}")
    return (tmp_path / f"whole.{kind}").read_bytes()


BROKEN = {
    "missing": (lambda tmp_path: None, "there is no such file"),
    "empty": (lambda tmp_path: b"", "not a PNG or JPEG image"),
    "text": (lambda tmp_path: b"a poem\nabout a cat\n", "not a PNG or JPEG image"),
    "gif": (lambda tmp_path: saved(tmp_path, "gif"), "not a PNG or JPEG image; convert it"),
    "half a png": (lambda tmp_path: saved(tmp_path, "png")[:5000], "the image is damaged"),
    "half a jpeg": (lambda tmp_path: saved(tmp_path, "jpg")[:2000], "the image is damaged"),
    "a bomb": (lambda tmp_path: png_that_claims(60_000, 60_000), "expected at most 89 million pixels"),
    "a smaller bomb": (lambda tmp_path: png_that_claims(10_000, 10_000), "expected at most 89 million pixels"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_is_no_image_is_reported_in_one_line(tmp_path, run, capsys, fault, status_of):
    make, message = BROKEN[fault]
    path = tmp_path / "cat.png"
    if (data := make(tmp_path)) is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)

    Image.fromarray(noise(32, 32)).save(tmp_path / "good.png")
    plot = tmp_path / "plot.png"
    assert status_of("predict", run.folder, tmp_path / "good.png", path, "--plot", plot) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minires: ") and err.count("\n") == 1 and message in err
    assert not plot.exists()


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ValueError, match="expected a picture, got a folder; name the pictures in it"):
        read_image(tmp_path)


# ---- the plot


def test_prediction_draws_each_image_and_a_bar_for_each_class():
    images = [noise(32, 32, seed=k) for k in range(2)]
    found = [[("cat", 0.75), ("dog", 0.2)], [("ship", 0.5), ("frog", 0.25), ("cat", 0.125)]]
    names = ["a$b.png", "a-picture-with-a-very-long-name.png"]
    figure = plots.prediction(images, names, found)
    first, first_bars, second, second_bars = figure.axes
    for axes, image in ((first, images[0]), (second, images[1])):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert first.get_title() == "a$b.png" and not first.title.get_parse_math()
    assert second.get_title() == "a-picture-w...g-name.png"
    for axes, classes in ((first_bars, found[0]), (second_bars, found[1])):
        assert [bar.get_width() for bar in axes.containers[0]] == [p for _, p in classes]
        assert [label.get_text() for label in axes.get_yticklabels()] == [name for name, _ in classes]
        assert [text.get_text() for text in axes.texts] == [f"{100 * p:.1f} %" for _, p in classes]
        assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert second_bars.get_xlabel() == "probability"


@pytest.mark.parametrize("count", [0, 41])
def test_prediction_says_how_many_images_a_picture_takes(count):
    with pytest.raises(ValueError, match=f"1 to 40 images, got {count}"):
        plots.prediction(count * [noise(32, 32)], count * ["a"], count * [[("cat", 1.0)]])


# ---- the command


def test_the_command_prints_five_classes_a_picture_and_draws_them(tmp_path, run, capsys, status_of):
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for k, path in enumerate(paths):
        Image.fromarray(noise(70, 40, seed=k)).save(path)
    assert status_of("predict", run.folder, *paths, "--plot", tmp_path / "plot.png") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == 13 and [lines[0], lines[6]] == [str(path) for path in paths]
    assert lines[12] == str(tmp_path / "plot.png")
    for k, path in enumerate(paths):
        p = softmax_of(run, read_image(path))
        best = [(CLASSES[i], f"{p[i]:.1%}") for i in np.argsort(-p)[:5]]
        assert [tuple(line.split()) for line in lines[6 * k + 1 : 6 * k + 6]] == best
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.format == "PNG" and plot.size[1] > 400


def test_the_command_never_overwrites_an_image(tmp_path, run, capsys, monkeypatch, status_of):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise(40, 40)).save("a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert status_of("predict", run.folder, "a.png", "--plot", tmp_path / "a.png") == 2
    assert "it would overwrite a.png" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def test_the_command_needs_a_run_and_an_image(tmp_path, run, capsys, status_of):
    Image.fromarray(noise(40, 40)).save(tmp_path / "a.png")
    calls = [(run.folder,), (tmp_path, tmp_path / "a.png")]
    for arguments, message in zip(calls, ("Missing argument", "holds no trained net"), strict=True):
        assert status_of("predict", *arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and message in err
