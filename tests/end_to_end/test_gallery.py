"""The gallery and the page about a run, written by the command and opened from the disk in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.commands import Finished, run_script

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium brings one")

# What would do something if a page took it for more than a name.
HOSTILE = (
    "train/<b>&'/<img src=x onerror=alert(1)>.png",
    "train/<b>&'/<img src=x onerror=alert(1)>.png",
    "train/c/</script><script>alert(2)</script>.png",
    'train/c/" onmouseover="alert(3)" x=".png',
    "train/c/${alert(4)}');alert(5);('.png",
)
IMAGES, NEIGHBOURS = 48, 5
RUN = {"image_size": 8, "encoder": "resnet10", "width_multiplier": 0.125, "stem": "small", "batch_size": 16}
# Ends in the second epoch, so that its checkpoint holds lists of hard negatives.
RUN.update(micro_batch=8, epochs=2, log_every=1, hard_negatives=6, max_steps=5)


class Looked(NamedTuple):
    """A run, and what the command said of its gallery."""

    workdir: Path
    finished: Finished


@pytest.fixture(scope="module")
def looked(tmp_path_factory) -> Looked:
    folder = tmp_path_factory.mktemp("look")
    random = np.random.default_rng(0)
    names = [*dict.fromkeys(HOSTILE), *(f"train/c/{i}.png" for i in range(IMAGES - len(set(HOSTILE))))]
    for name in names:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, [10, 10, 3], np.uint8)).save(path)
    shutil.copy(folder / "images" / "train/c/0.png", folder / "images" / "train/c/1.png")
    workdir = folder / "a run"
    flags = [f"--{name}={value}" for name, value in RUN.items()]
    finished = run_script("pretrain", f"--dataset=folder:{folder}/images", f"--workdir={workdir}", *flags)
    assert finished.status == 0, finished.output
    finished = run_script(
        "gallery", f"--workdir={workdir}", f"--neighbors={NEIGHBOURS}", "--thumbnail_size=16", "--layout=pca"
    )
    assert finished.status == 0, finished.output
    return Looked(workdir, finished)


def test_the_answer_and_its_files(looked):
    answer = json.loads(looked.finished.stdout.splitlines()[-1])
    assert answer == json.loads((looked.workdir / "gallery.json").read_text())
    assert (answer["images"], answer["of"], answer["layout"]) == (IMAGES, IMAGES, "pca")
    assert answer["near_duplicates"] == 1
    files = [path for path in (looked.workdir / "gallery").rglob("*") if path.is_file()]
    assert answer["bytes"] == sum(path.stat().st_size for path in files)
    assert (looked.workdir / "tensorboard" / "projector_config.pbtxt").exists()


# ------------------------------------------------------------------------------------------------------------ a browser


class Opened:
    """A page from the disk, and what it did that it should not."""

    def __init__(self, page: Any, path: Path, around: Path):
        self.page, self.wrong = page, []
        allowed = (around.as_uri() + "/", "data:")
        page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(allowed) or self.wrong.append(request.url))
        page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))
        page.goto(path.as_uri())

    def ask(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def wait(self, script: str, argument: Any = None) -> None:
        self.page.wait_for_function(script, arg=argument, timeout=20_000)

    def image_of(self, name: str) -> int:
        """Which of the gallery's images has a name."""
        script = "async () => Promise.all([...Array(set.images).keys()].map(nameOf))"
        return self.ask(script).index(name)

    def shown(self) -> int:
        return int(self.ask("() => document.body.dataset.shown ?? -1"))

    def panel(self) -> dict[str, list[int]]:
        """The images of each list in the panel, by its title."""
        script = """() => Object.fromEntries([...document.querySelectorAll("#panel h3")].map((title) => {
          let at = title;
          while (at && at.tagName !== "UL") at = at.nextElementSibling;
          return [title.textContent, [...at.querySelectorAll("button")].map((one) => Number(one.dataset.image))];
        }))"""
        return self.ask(script)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--enable-unsafe-swiftshader", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def gallery(browser, looked) -> Opened:
    context = browser.new_context(reduced_motion="reduce", color_scheme="dark")
    path = looked.workdir / "gallery" / "index.html"
    opened = Opened(context.new_page(), path, path.parent)
    opened.wait("() => points !== undefined")
    return opened


@needs_browser
def test_a_click_on_a_point_shows_its_neighbours(gallery):
    image, twin = (gallery.image_of(f"c/{number}.png") for number in (0, 1))
    at = gallery.ask("""(image) => {
      const frame = map.getBoundingClientRect(), [x, y] = pixelOf(image);
      return [frame.left + x, frame.top + y];
    }""", image)  # fmt: skip
    gallery.page.mouse.click(*at)
    gallery.wait("() => document.body.dataset.shown")
    assert gallery.shown() in (image, twin), "they lie upon each other"
    found, other = gallery.panel(), image + twin - gallery.shown()
    assert found.keys() == {"Nearest instances", "Neighbours of the class weight", "Hard negatives", "Near duplicates"}
    assert found["Nearest instances"][0] == other
    assert found["Near duplicates"] == [other]
    assert len(found["Nearest instances"]) == len(found["Hard negatives"]) == NEIGHBOURS
    assert gallery.ask("() => document.querySelector('#panel .sprite').style.backgroundImage.includes('sprites/')")
    # Of the wide spread of the others a box takes some.
    gallery.page.keyboard.down("Shift")
    box = gallery.page.locator("#map").bounding_box()
    gallery.page.mouse.move(box["x"] + 2, box["y"] + 2)
    gallery.page.mouse.down()
    gallery.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    gallery.page.mouse.up()
    gallery.page.keyboard.up("Shift")
    assert gallery.page.locator("#panel h2").text_content() == f"{IMAGES} images chosen"
    assert gallery.wrong == []


@needs_browser
def test_the_keyboard_alone_does_the_same(gallery):
    gallery.page.reload()
    gallery.wait("() => points !== undefined")
    press = gallery.page.keyboard.press
    for _ in range(20):
        press("Tab")
        if gallery.ask("() => document.activeElement.id") == "map":
            break
    assert gallery.ask("() => getComputedStyle(document.activeElement).outlineStyle") != "none", "focus can be seen"
    press("ArrowRight")
    first = gallery.ask("() => cursor")
    press("ArrowRight")
    second = gallery.ask("() => cursor")
    assert gallery.ask("([a, b]) => places[2 * b] > places[2 * a]", [first, second])
    press("Enter")
    gallery.wait("(image) => document.body.dataset.shown == image", second)
    nearest = gallery.panel()["Nearest instances"]
    assert gallery.ask("() => document.activeElement.tagName") == "H2"
    press("Tab")
    gallery.wait("() => document.activeElement.getAttribute('aria-label').includes('.png ')")
    press("Enter")
    gallery.wait("(image) => document.body.dataset.shown == image", nearest[0])
    press("Escape")
    assert gallery.ask("() => document.activeElement.id") == "map"
    # Readers who want no motion get none: the view is there at once.
    assert gallery.ask("() => { view.scale *= 40; point(0); return Math.abs(view.x - places[0]); }") < 1e-6
    press("Escape")
    assert gallery.shown() == -1
    assert gallery.wrong == []


@needs_browser
@pytest.mark.parametrize("path", sorted(set(HOSTILE)))
def test_hostile_names_are_text(gallery, path):
    name = path.removeprefix("train/")
    gallery.page.fill("#number", str(gallery.image_of(name) + 1))
    gallery.page.press("#number", "Enter")
    gallery.wait("(name) => document.querySelector('#panel h2')?.textContent === name", name)
    gallery.page.hover("#panel .thumb")
    assert gallery.page.locator("main img, main script, b, [onmouseover], [onerror]").count() == 0
    assert gallery.wrong == []


@needs_browser
def test_outliers_duplicates_classes_and_dark_pages(gallery):
    for name, most in (("outliers", IMAGES), ("duplicates", 2)):
        gallery.page.click(f"#{name}")
        assert gallery.page.locator("#panel .thumb").count() == most
    assert gallery.page.locator("#legend button").all_text_contents() == ["<b>&'", "c"]
    gallery.page.click("#legend button >> nth=1")
    assert gallery.page.get_attribute("#legend button >> nth=1", "aria-pressed") == "true"
    gallery.page.select_option("#colour", "rank")
    assert gallery.page.locator("#legend button").count() == 0
    light = gallery.ask("() => getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in light[4:-1].split(",")) < 3 * 64
    assert gallery.wrong == []


@needs_browser
def test_a_browser_without_webgl(browser, looked):
    page = browser.new_page()
    page.add_init_script("""const own = HTMLCanvasElement.prototype.getContext;
      HTMLCanvasElement.prototype.getContext = function (kind) {
        return kind === "webgl2" ? null : own.call(this, kind);
      };""")
    path = looked.workdir / "gallery" / "index.html"
    opened = Opened(page, path, path.parent)
    opened.wait("() => points !== undefined")
    assert opened.ask("() => points.kind") == "2-D canvas"
    assert opened.ask("""() => {
      draw();
      const { width, height } = el("points");
      return el("points").getContext("2d").getImageData(0, 0, width, height).data.some((value) => value);
    }""")
    assert opened.wrong == []


@needs_browser
def test_the_page_about_the_run(browser, looked):
    opened = Opened(browser.new_page(java_script_enabled=False), looked.workdir / "report.html", looked.workdir)
    assert "Step 5 of 6: unfinished." in opened.page.text_content("body")
    assert opened.page.locator('section svg[role="img"]').count() == 3 + 2  # no k-NN was asked for, gauges are
    assert opened.page.locator("section img").count() == 1 + 6  # views, and rows of neighbours
    assert opened.page.locator("script, section b").count() == 0
    assert opened.wrong == []


@needs_browser
def test_the_benchmark_draws_in_a_browser(tmp_path):
    finished = run_script("benchmark", "gallery", "--num_instances=300", f"--folder={tmp_path}")
    assert finished.status == 0, finished.output
    answer = json.loads(finished.stdout.splitlines()[-1])
    assert answer["browser"]["renderer"] == "WebGL2"
    assert min(answer["browser"][name] for name in ("first_draw_ms", "frame_ms", "near_frame_ms")) > 0
    assert answer["bytes"] > 0 and list(tmp_path.iterdir()) == []
