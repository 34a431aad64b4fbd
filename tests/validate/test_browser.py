"""The report and the viewer in a real browser: they draw, they react, and the console stays clean.

Pictures go to the folder in RELIEF3D_SCREENSHOTS when it is set, else to pytest's temporary folder.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relief3d.report import ReportData, write_report
from report.ball_room import make_report, make_scene
from validate import browser as chromium

pytest.importorskip("websockets", reason="driving the browser needs the package 'websockets'")

pytestmark = [
    pytest.mark.validate,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        chromium.find_browser() is None,
        reason="no Chromium on this machine: apt-get install -y --no-install-recommends chromium",
    ),
]
READY = "!!document.querySelector('.explorer.ready, .explorer.broken')"
SETTLED = 2.5  # seconds for the view to come to rest with software rendering


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures go."""
    wanted = os.environ.get("RELIEF3D_SCREENSHOTS")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"screenshots: {folder}\n")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One browser without network for all tests of this file."""
    with chromium.browser(tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the synthetic room, with a hostile file name in it."""
    data = make_report(make_scene(views=8, width=320, height=240, lost=1, steps=60))
    evil = "<img src=x onerror=\"console.error('injected')\">.jpg"
    views = [dataclasses.replace(data.views[0], name=evil, neighbours=[evil]), *data.views[1:]]
    scene = data.scene.replace(views=(data.scene.views[0].replace(name=evil), *data.scene.views[1:]))
    data = dataclasses.replace(data, scene=scene, views=views, warnings=[evil])
    return write_report(data, tmp_path_factory.mktemp("report") / "report.html")


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) float in [0, 255]."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)


def assert_drawn(path: Path) -> np.ndarray:
    """The picture is not blank: many colours, and no single one covers nearly all of it."""
    image = pixels(path)
    packed = image.astype(np.int64) @ np.array([65536, 256, 1])
    _, counts = np.unique(packed, return_counts=True)
    assert counts.size > 500, f"{path.name}: only {counts.size} colours"
    assert counts.max() / packed.size < 0.9, (
        f"{path.name}: one colour covers {counts.max() / packed.size:.0%}"
    )
    return image


def canvas(page: object, path: Path) -> np.ndarray:
    """The middle of the 3D view, free of controls, as a picture."""
    page.run("document.querySelector('.explorer').scrollIntoView({block: 'center', behavior: 'instant'})")
    page.listen(SETTLED)
    x, y, width, height = page.box(".explorer canvas")
    y += page.run("scrollY")
    return assert_drawn(page.picture(path, (x + 0.27 * width, y + 60, 0.7 * width, height - 150)))


def slide(page: object, name: str, value: int) -> None:
    """Move a slider of the panel."""
    page.run(
        f"(i => {{i.value = {value}; i.dispatchEvent(new Event('input'))}})"
        f"(document.querySelector('input[data-part={name}]'))"
    )


def check_clean(page: object, allowed: tuple[str, ...]) -> None:
    assert page.errors == []
    outside = [r for r in page.requests if not r.startswith(("data:", "blob:", "about:", *allowed))]
    assert outside == []


def test_report_draws_and_reacts(page: object, report: Path, shots: Path) -> None:
    page.open(report.as_uri())
    page.wait(READY)
    assert page.run("document.querySelector('.explorer').classList.contains('ready')")
    start = canvas(page, shots / "report_view.png")
    page.picture(shots / "report_top.png")

    x, y, width, height = page.box(".explorer canvas")
    middle = (x + width / 2, y + height / 2)
    page.drag(middle, (middle[0] + 150, middle[1] + 40))
    turned = canvas(page, shots / "report_turned.png")
    assert np.abs(turned - start).mean() > 3

    page.mouse("mouseWheel", *middle, deltaX=0, deltaY=-600)
    assert np.abs(canvas(page, shots / "report_zoomed.png") - turned).mean() > 3

    page.run("document.querySelector('[data-part=reset]').click()")
    assert np.abs(canvas(page, shots / "report_reset.png") - start).mean() < 3
    check_clean(page, ("file:",))


def test_report_looks_through_a_camera(page: object, report: Path, shots: Path) -> None:
    page.open(report.as_uri())
    page.wait(READY)
    page.run("document.querySelectorAll('.jump')[2].click()")
    for layer in ("cameras", "path", "grid"):
        page.run(f"(b => b.checked && b.click())(document.querySelector('[data-layer={layer}]'))")
    slide(page, "opacity", 100)
    page.listen(SETTLED)
    photo = canvas(page, shots / "report_photo.png")
    slide(page, "opacity", 0)
    mesh = canvas(page, shots / "report_mesh_from_camera.png")
    # The coloured mesh seen from the recovered camera must agree with the photo laid over it.
    assert np.median(np.abs(photo - mesh)) < 14
    assert "photo_003.jpg" in page.run("document.querySelector('[data-part=through-name]').textContent")
    page.run("document.querySelector('[data-part=leave]').click()")
    assert page.run("document.querySelector('[data-part=through]').hidden")
    check_clean(page, ("file:",))


def test_report_layers_change_the_picture(page: object, report: Path, shots: Path) -> None:
    page.open(report.as_uri())
    page.wait(READY)
    toggle = "document.querySelector('[data-layer={}]').click()"
    mesh = canvas(page, shots / "report_layers_mesh.png")
    page.run(toggle.format("mesh"))
    page.run(toggle.format("points"))
    points = canvas(page, shots / "report_layers_points.png")
    assert np.abs(points - mesh).mean() > 2
    slide(page, "confidence", 235)
    assert np.abs(canvas(page, shots / "report_layers_confident.png") - points).mean() > 1
    page.run(toggle.format("pictures"))
    canvas(page, shots / "report_layers_pictures.png")
    check_clean(page, ("file:",))


def test_report_measures_a_distance(page: object, report: Path, shots: Path) -> None:
    page.open(report.as_uri())
    page.wait(READY)
    canvas(page, shots / "report_before_measure.png")
    page.run("document.querySelector('[data-part=measure]').click()")
    x, y, width, height = page.box(".explorer canvas")
    page.click(x + 0.5 * width, y + 0.62 * height)
    page.listen(0.6)  # two quick clicks would be a double click
    page.click(x + 0.62 * width, y + 0.7 * height)
    page.listen(1.5)
    page.picture(shots / "report_measure.png")
    label = page.run("document.querySelector('[data-part=distance]').textContent")
    assert label.endswith(" m") and 0.05 < float(label.split()[0]) < 6
    check_clean(page, ("file:",))


@pytest.mark.parametrize(
    ("dark", "width", "height"), [(False, 1360, 950), (True, 1360, 950), (True, 390, 800)]
)
def test_report_fits_the_window(
    page: object, report: Path, shots: Path, dark: bool, width: int, height: int
) -> None:
    page.open(report.as_uri(), dark=dark, width=width, height=height)
    page.wait(READY)
    page.listen(1.5)
    name = f"report_{'dark' if dark else 'light'}_{width}.png"
    image = pixels(page.picture(shots / name, whole=True))
    background = image[:, 2].mean()
    assert background < 60 if dark else background > 200
    assert page.run("document.documentElement.scrollWidth") <= width
    check_clean(page, ("file:",))


def test_report_without_geometry(page: object, tmp_path: Path, shots: Path) -> None:
    scene = make_scene(views=3, lost=0, steps=4).replace(mesh=None, points=None, sparse=None)
    scene = scene.replace(views=tuple(v.replace(depth=None) for v in scene.views))
    page.open(write_report(ReportData(scene), tmp_path / "bare.html").as_uri())
    page.wait(READY)
    page.listen(1)
    assert page.run("document.querySelector('.explorer').classList.contains('ready')")
    page.picture(shots / "report_bare.png")
    check_clean(page, ("file:",))


def test_viewer_draws(page: object, output: Path, shots: Path) -> None:
    pytest.importorskip("viser", reason="the viewer needs the extra 'viewer'")
    from relief3d.viewer.app import start_viewer

    viewer = start_viewer(output, port=0)
    try:
        page.open(viewer.address)
        page.wait("!!document.querySelector('canvas') && document.body.innerText.includes('Jump to camera')")
        page.listen(6)
        start = assert_drawn(page.picture(shots / "viewer.png"))
        client = next(iter(viewer.server.get_clients().values()))
        viewer.stage.jump(client, viewer.stage.scene.views[2])
        page.listen(4)
        assert np.abs(assert_drawn(page.picture(shots / "viewer_camera.png")) - start).mean() > 5
        check_clean(page, ("file:", viewer.address, viewer.address.replace("http:", "ws:")))
    finally:
        page.open("about:blank")
        viewer.close()
