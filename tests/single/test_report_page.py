"""The page about a run, whatever state the run is in."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from instcls_tf import flagfiles
from instcls_tf.config import PretrainConfig
from instcls_tf.data.sources import open_training_source
from instcls_tf.errors import UserError
from instcls_tf.report import page
from instcls_tf.report.charts import Line, Mark, chart
from instcls_tf.run.workdir import begin_run
from tests.images import write_images

STEPS = 8  # of two epochs over the digits


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A run that has not begun."""
    begin_run(PretrainConfig(**_recipe(tmp_path)))
    return tmp_path


def _recipe(folder) -> dict:
    sizes = {"image_size": 8, "batch_size": 360, "epochs": 2}
    return {"workdir": str(folder), "dataset": "digits", "augmentation": "none", **sizes}


def log(workdir: Path, *lines: object) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)


def line(step: int, **others) -> dict:
    usual = {"loss": 8.0 - step / 10, "instance_top1": 0.1, "images_per_second": 100.0}
    return {"step": step, "epoch": step / 4, **usual, **others}


def section(text: str, title: str) -> str:
    return re.search(rf"<h2>{title}</h2>(.*?)</section>", text, re.DOTALL)[1]


def written(workdir: Path, *arguments) -> str:
    path = page.write_page(str(workdir), *arguments)
    assert path == str(workdir / "report.html")
    return Path(path).read_text()


def test_a_run_that_has_logged_nothing(workdir):
    text = written(workdir)
    assert "No step has been logged yet." in text
    assert section(text, "Training").count("Nothing of it has been logged.") == 4
    assert section(text, "What the network saw").count('src="data:image/jpeg;base64,') == 1
    assert "No evaluation has been made yet." in text
    assert f"python -m scripts.pretrain --flagfile={workdir}/run.flags --workdir={workdir}" in section(text, "Next")


def test_a_run_whose_folder_was_moved_goes_on_where_it_is(workdir, tmp_path_factory):
    """Its flags name the folder that it began in."""
    moved = tmp_path_factory.mktemp("elsewhere") / "a run"
    shutil.copytree(workdir, moved)
    (command,) = re.findall(r"python -m scripts.pretrain (.*?)</pre>", section(written(moved), "Next"))
    values = flagfiles.expand(shlex.split(unescape(command)))
    assert [value for value in values if value.startswith("--workdir=")] == [
        f"--workdir={workdir}",
        f"--workdir={moved}",
    ]


def test_an_unfinished_run_and_a_finished_one(workdir):
    log(workdir, line(1), line(5))
    text = written(workdir)
    assert f"Step 5 of {STEPS}: unfinished." in text
    assert "scripts.pretrain" in section(text, "Next")
    log(workdir, line(1), line(5), line(STEPS, knn_top1=0.5, gauge_agreement=0.7, rank_me=31.5))
    for name, step in {"knn_eval": {"step": 5}, "linear_eval": {"step": STEPS}, "knn_eval_pixels": {}}.items():
        (workdir / f"{name}.json").write_text(json.dumps({"top1": 0.5, **step}))
    (workdir / "checkpoints").mkdir()
    for step in (5, STEPS):
        assert "<p>" not in section(written(workdir), "Results")  # the log is ahead of what can be measured
        for ending in (".index", ".json"):
            (workdir / "checkpoints" / f"ckpt-{step:08d}{ending}").touch()
    text = written(workdir)
    results = section(text, "Results")
    old = f"<p>Of step 5, before the run went on to step {STEPS}: the same command measures it anew.</p>"
    assert results.count("<p>") == 1 and f"<h3>knn_eval</h3>{old}" in results and "<h3>knn_eval_pixels</h3>" in results
    assert f"Step {STEPS} of {STEPS}: finished." in text
    assert "scripts.knn_eval" in section(text, "Next") and "scripts.pretrain" not in section(text, "Next")
    training = section(text, "Training")
    assert "Gauge: agreement of the neighbours of two views" in training and "<td>31.5</td>" in training
    # The marks are of N = 1,437 and D = 128, tau = 0.15, which have ln N + 1 / (2 D tau^2).
    assert "expected start: 7.444" in training and "floor: " in training


def test_every_chart_has_its_numbers_as_text(workdir):
    log(workdir, *(line(step) for step in range(1, STEPS + 1)))
    training = section(written(workdir), "Training")
    figures = re.findall(r"<figure>(.*?)</figure>", training, re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        assert re.search(r'<svg role="img" [^>]*aria-label="[^"]+ from [^"]+"', figure)
        assert figure.count("<tr>") == 1 + STEPS


def test_a_log_that_is_spoilt(workdir, capsys):
    spoilt = [line(2, loss=float("nan")), line(3, loss="high"), line(4, loss=None), line(5, images_per_second=[1])]
    log(workdir, line(1), '{"step": 1, "lo', "\0\0", "[]", *spoilt, line(6, loss=True), line(7))
    text = written(workdir)
    assert f"Step 7 of {STEPS}" in text
    loss = re.search(r"Loss as a table.*?</table>", text)[0]
    assert re.findall(r"<tr><td>(\d+)</td>", loss) == ["1", "5", "7"]
    assert "skipped 3 line(s)" in capsys.readouterr().err


def test_images_that_are_gone(tmp_path):
    config = PretrainConfig(**_recipe(tmp_path)).replace(dataset=f"folder:{tmp_path}/<b>gone")
    begin_run(config)
    log(tmp_path, line(3))
    text = written(tmp_path)
    assert "Step 3; how many there will be is not known without the images." in text
    assert "no such folder" in section(text, "What the network saw") and "<b>" not in text


def test_epochs_of_contrast_tell_images_from_the_batch(tmp_path):
    begin_run(PretrainConfig(**_recipe(tmp_path)).replace(contrast_epochs=1))
    log(tmp_path, line(3, instance_top1=0.75), line(4, instance_top1=0.5), line(5, instance_top1=0.25))
    text = section(written(tmp_path), "Training")
    assert "images told from the batch&#x27;s" in text and "images told from all others" in text
    table = re.search(r"Instance accuracy as a table.*?</table>", text)[0]
    rows = ["<td>3</td><td>0.75</td><td></td>", "<td>4</td><td>0.5</td><td></td>", "<td>5</td><td></td><td>0.25</td>"]
    assert all(row in table for row in rows)


def test_the_classification_within_a_loss_with_contrast(tmp_path):
    begin_run(PretrainConfig(**_recipe(tmp_path)).replace(batch_contrast=2.0))
    log(tmp_path, line(1, loss=10.0, contrast_loss=1.5), line(2, loss=9.0, contrast_loss="?"))
    text = section(written(tmp_path), "Training")
    assert "<tr><td>1</td><td>10</td><td>7</td></tr><tr><td>2</td><td>9</td><td></td></tr>" in text


def test_results_and_neighbours_are_escaped(workdir):
    (workdir / "knn_eval.json").write_text(json.dumps({"top1": 0.51234, "<i>": "<script>", "deep": {"a": 1}}))
    (workdir / "linear_eval.json").write_text("{cut")
    names = ["<img src=x onerror=alert(1)>.png", '"> <b>.png']
    row = page.Neighbours(names, [0.9], np.zeros([2, 8, 8, 3], np.uint8))
    text = written(workdir, None, [row])
    assert "<td>0.5123</td>" in text and "deep · a" in text
    assert "linear_eval" not in section(text, "Results")
    assert not re.search(r"<(b|i|script|img src=x)\b", text)
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text and "(0.90)" in text


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        page.write_page(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize("ys", [[1.0], [0.0, 0.0], [-3.0, 5.0], [1e-9, 2e-9], [1e9, 1e9 + 1]])
def test_lines_lie_within_the_picture(ys):
    text = chart("t", "x", "y", [Line("l", [float(x) for x in range(len(ys))], ys)], [Mark("m", ys[0])])
    points = re.search(r'<polyline [^>]*points="([^"]+)"', text)[1].split()
    assert len(points) == len(ys)
    for x, y in (map(float, point.split(",")) for point in points):
        assert 0 <= x <= 640 and 0 <= y <= 260
    assert len(re.findall('class="grid"', text)) >= 1


def test_long_lines_are_given_by_means():
    xs = [float(x) for x in range(10_001)]
    text = chart("t", "x", "y", [Line("l", xs, xs)])
    points = re.search(r'<polyline [^>]*points="([^"]+)"', text)[1].split()
    assert len(points) == 500
    assert text.count("<tr>") == 21
    assert "<td>10000</td><td>1e+04</td>" in text


def test_two_lines_have_a_legend_and_names_are_escaped():
    lines = [Line("<b>", [1.0], [2.0]), Line("other", [1.0, 2.0], [3.0, 1.0]), Line("empty", [], [])]
    text = chart("t", "x", "y", lines)
    assert text.count('class="legend"') == 1 and "<b>" not in text and "empty" not in text
    assert "<td>2</td><td></td><td>1</td>" in text


def test_images_that_were_added_since_are_none_of_the_run(tmp_path):
    """Which have labels, and no test split: what needs one is not proposed."""
    photos = tmp_path / "photos"
    write_images(photos, [f"train/{'ab'[index % 2]}/{index}.jpg" for index in range(8)])
    sizes = {"image_size": 8, "batch_size": 4, "epochs": 2, "hard_negatives": 2}
    config = PretrainConfig(workdir=str(tmp_path / "run"), dataset=f"folder:{photos}", **sizes)
    begin_run(config)
    open_training_source(config, begins=True).write_manifest(config.workdir)
    log(tmp_path / "run", line(4))
    write_images(photos, [f"train/{'ab'[index % 2]}/{index}.jpg" for index in range(11)])
    text = written(tmp_path / "run")
    assert "scripts.knn_eval" not in section(text, "Next") and "scripts.export" in section(text, "Next")
    assert "8 images of" in text and "11 images" not in text
    assert "finished" in text and "unfinished" not in text
