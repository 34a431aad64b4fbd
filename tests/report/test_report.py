"""The report is one safe, self-contained file, whatever is missing."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.report import ReportData, StageTiming, ViewRecord, records_from_scene, write_report
from relief3d.report import html as fragments
from relief3d.report.pictures import PictureLimits, depth_picture, depth_ramp, fit, jpeg_address
from relief3d.report.sections import _legend
from report.ball_room import make_report, make_scene

EVIL = "<img src=x onerror=alert(1)>\"'&.jpg"
VOID = {"meta", "img", "input", "br", "hr", "link", "rect", "stop"}


class Structure(HTMLParser):
    """Collects elements and checks that they are balanced."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append((self.tags[-1][1] | {"tag": self.open[-1]}, data))
        else:
            self.text.append(data)


def parse(page: str) -> Structure:
    parser = Structure()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    scene = make_scene(views=3, lost=1, steps=8)
    path = write_report(make_report(scene), tmp_path_factory.mktemp("report") / "report.html")
    return path.read_text(encoding="utf-8")


def test_page_has_every_part(page: str) -> None:
    structure = parse(page)
    sections = {a.get("id") for tag, a in structure.tags if tag == "section"}
    assert sections == {"view", "orbit", "evaluation", "stages", "failed", "views", "run"}
    text = " ".join(structure.text)
    for words in (
        "3 / 4",
        "1 min 24 s",
        "1.80 GiB",
        "97.31",
        "only 7 of its features",
        "relief3d reconstruct 'photos of a room'",
    ):
        assert words in text, words
    assert sum(a.get("class") == "card" for _, a in structure.tags) == 4
    assert sum(a.get("class") == "jump" for _, a in structure.tags) == 3


def test_page_asks_for_nothing_outside(page: str) -> None:
    assert (
        re.search(
            r"(?:https?:)?//[a-z0-9]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", _without_payload(page)), re.I
        )
        is None
    )
    for _, attributes in parse(page).tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), value
    assert "@import" not in page and "url(" not in page.replace("url(#ramp)", "")


def _without_payload(page: str) -> str:
    """The page without comments of its scripts and without its base64 block."""
    page = re.sub(r'(<script type="text/plain"[^>]*>)[^<]*', r"\1", page)
    return re.sub(r"^\s*//.*$|\s//\s.*$", "", page, flags=re.M)


def test_policy_matches_the_page(page: str) -> None:
    structure = parse(page)
    policy = next(
        a["content"] for tag, a in structure.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy
    for attributes, source in structure.scripts:
        if attributes["tag"] == "style" or "type" not in attributes:
            digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    for _, attributes in structure.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), attributes


def test_strings_from_outside_are_only_text(tmp_path: Path) -> None:
    scene = make_scene(views=2, lost=0, steps=6)
    scene = scene.replace(
        views=(scene.views[0].replace(name=EVIL), scene.views[1].replace(name="</script><b>x</b>"))
    )
    record = ViewRecord(EVIL, scene.views[0].image, reason=EVIL, neighbours=[EVIL], extra={EVIL: EVIL})
    data = ReportData(
        scene, [record], title=EVIL,
        summary={"command": EVIL, "versions": {EVIL: EVIL}, EVIL: [EVIL], "config": {EVIL: EVIL}},
        stages=[StageTiming(EVIL, 1.0, None, EVIL)], warnings=[EVIL], evaluation={EVIL: EVIL},
    )  # fmt: skip
    page = write_report(data, tmp_path / "r.html").read_text(encoding="utf-8")
    structure = parse(page)
    assert not any("onerror" in a for _, a in structure.tags)
    assert not any(tag == "b" for tag, _ in structure.tags)
    assert EVIL in structure.text
    header = next(s for a, s in structure.scripts if a.get("id") == "r3d-header")
    assert "<" not in header
    assert [c["name"] for c in json.loads(header)["cameras"]] == [EVIL, "</script><b>x</b>"]


def test_works_without_mesh_depth_points_or_cameras(tmp_path: Path) -> None:
    scene = make_scene(views=2, lost=0, steps=6)
    bare = scene.replace(
        mesh=None, points=None, sparse=None, views=tuple(v.replace(depth=None) for v in scene.views)
    )
    page = parse(write_report(ReportData(bare), tmp_path / "bare.html").read_text(encoding="utf-8"))
    assert any(a.get("class") == "explorer" for _, a in page.tags)  # the cameras are still there
    lost = Scene((View("a", Camera(8, 6)), View("b", Camera(8, 6))))
    page = parse(write_report(ReportData(lost), tmp_path / "lost.html").read_text(encoding="utf-8"))
    assert not any(a.get("class") == "explorer" for _, a in page.tags)
    assert {a.get("id") for tag, a in page.tags if tag == "section"} == {"failed", "views"}
    assert parse(write_report(ReportData(Scene(())), tmp_path / "none.html").read_text(encoding="utf-8")).tags


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError):
        write_report(ReportData(Scene(())), tmp_path / "file" / "r.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError):
        write_report(ReportData(Scene(())), tmp_path / "folder.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.html"]


def test_many_views_get_smaller_pictures() -> None:
    limits = PictureLimits()
    sides = [limits.side(n) for n in (1, 11, 100, 1000, 10_000)]
    assert sides == sorted(sides, reverse=True) and sides[0] == 640 and sides[-1] == 96


def test_page_with_many_views_stays_small(tmp_path: Path) -> None:
    gen = torch.Generator().manual_seed(0)
    noise = torch.nn.functional.interpolate(
        torch.rand(1, 3, 48, 64, generator=gen), (240, 320), mode="bilinear"
    )[0]
    views = tuple(View(f"v{i}.jpg", Camera(320, 240), noise) for i in range(60))
    small = PictureLimits(total_bytes=300_000)
    from relief3d.report.writer import ReportLimits

    path = write_report(ReportData(Scene(views)), tmp_path / "r.html", ReportLimits(pictures=small))
    assert path.stat().st_size < 1_000_000


def test_records_follow_from_the_scene() -> None:
    scene = make_scene(views=3, lost=1, steps=6)
    records = records_from_scene(scene)
    assert [r.registered for r in records] == [True, True, True, False]
    assert records[0].observations == 400 and records[3].observations == 0
    assert scene.sparse is not None
    assert sum(r.observations or 0 for r in records) == scene.sparse.obs_point.shape[0]
    assert records[0].reprojection_error == pytest.approx(0.7, abs=0.1)


def test_depth_colours_and_holes() -> None:
    values = torch.tensor([[1.0, 1.0, 4.0], [4.0, 1.6, float("nan")]])
    picture = depth_picture(Depth.from_values(values), 64)
    assert picture is not None and (picture.near, picture.far) == pytest.approx((1.0, 4.0))
    assert picture.valid.tolist() == [[True, True, True], [True, True, False]]
    ramp = depth_ramp(3)
    assert torch.allclose(picture.rgb[:, 0, 0], ramp[0]) and torch.allclose(picture.rgb[:, 1, 0], ramp[2])
    assert torch.allclose(picture.rgb[:, 1, 1], ramp[1], atol=0.02)  # 1.6 is the harmonic mean of 1 and 4
    assert depth_picture(Depth.from_values(torch.zeros(3, 3)), 64) is None


def test_legend_names_the_middle_of_the_scale() -> None:
    assert "1\u202fm</span><span>1.6\u202fm</span><span>4\u202fm" in _legend(1.0, 4.0, True)


def test_thumbnails_are_real_jpegs() -> None:
    from PIL import Image

    picture = fit(torch.rand(3, 90, 200, generator=torch.Generator().manual_seed(3)), 50)
    assert picture.shape == (3, 22, 50)
    address = jpeg_address(picture)
    kind, data = address.split(",", 1)
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).size == (50, 22)


@pytest.mark.parametrize(
    ("value", "want"),
    [(0.25, "0.25 s"), (9.96, "10.0 s"), (59.4, "59 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_durations(value: float, want: str) -> None:
    assert fragments.seconds(value) == want


def test_numbers_that_are_not_finite_are_named() -> None:
    assert fragments.number(float("nan")) == "not available"
    data = dataclasses.replace(
        make_report(make_scene(views=1, lost=0, steps=4)), evaluation={"AUC": float("inf")}
    )
    assert data.evaluation is not None and "not available" in fragments.table(
        fragments.flatten(data.evaluation)
    )
