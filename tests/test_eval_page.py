"""A run as one HTML page: whole, self-contained, and readable in a browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from runtime.keypoints import COCO
from tests.coco_data import ROOT, read_metrics, run_main

SIGMAS = np.array(COCO.sigmas)
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Open elements, addresses and inline pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.names = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href", "data", "srcset")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def command(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)


@pytest.fixture
def run(coco, tmp_path, monkeypatch):
    """A run of eval.coco, on a copy of which one image has a name that HTML must not take as a tag."""
    shutil.copytree(coco / "images", tmp_path / "images")
    (tmp_path / "images" / "1.png").rename(tmp_path / "images" / "<b>.png")
    data = json.loads((coco / "annotations.json").read_text())
    data["images"][1]["file_name"] = "<b>.png"
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    run_main(monkeypatch, "--engine", coco / "coco.onnx", "--annotations", tmp_path / "annotations.json", "--images",
             tmp_path / "images", "--out", tmp_path / "run")
    return tmp_path / "run"


def test_page_is_whole_and_needs_nothing_else(run):
    done = command("eval.page", run, "--images", run.parent / "images", "--pictures", 20)
    assert done.returncode == 0, done.stderr
    text = (run / "page.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.names.count("svg") == 3
    assert page.names.count("img") == 18, "nine images with persons, each beside its truth"
    assert page.addresses and all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert "b" not in page.names and "&lt;b&gt;.png" in text
    assert f"{read_metrics(run)['AP']:.3f}" in text and read_metrics(run)["protocol"]["engine_sha256"] in text
    assert "prefers-color-scheme: dark" in text and "currentColor" in text and "#010203" not in text


def test_page_shows_truth_beside_poses(run):
    """A skeleton is drawn on both pictures: they differ from the plain one by more than its own JPEG does."""
    from eval.annotations import read_image
    from eval.compare import annotations_of, read_run
    from eval.page import worst_pictures
    read = read_run(run)
    annotations = annotations_of(read)
    (shown,) = worst_pictures(read, annotations, SIGMAS, COCO, run.parent / "images", 1)
    pictures = [cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
                for data in re.findall("base64,([^\"]+)", shown)]
    name = re.search(r"<figcaption>(.*?): OKS", shown).group(1)
    image = next(item for item in annotations.images if item["file_name"] == name)
    plain = read_image(image, run.parent / "images")
    assert len(pictures) == 2
    undrawn = cv2.imdecode(cv2.imencode(".jpg", plain, [cv2.IMWRITE_JPEG_QUALITY, 82])[1], cv2.IMREAD_COLOR)
    for picture in pictures:
        assert picture.shape == plain.shape
        assert (np.abs(picture.astype(int) - undrawn).max(2) > 100).sum() > 300


def test_page_without_pictures(run):
    done = command("eval.page", run, "--out", run / "deep" / "page.html")
    assert done.returncode == 0, done.stderr
    assert "<img" not in (run / "deep" / "page.html").read_text()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (chromium, chromium-browser, google-chrome)")
@pytest.mark.parametrize("width", [1200, 390], ids=["desk", "phone"])
def test_page_in_a_browser(run, tmp_path, width):
    """What a browser makes of it: the text is there, the pictures have decoded, and nothing is wider than the page."""
    done = command("eval.page", run, "--images", run.parent / "images", "--pictures", 3)
    assert done.returncode == 0, done.stderr
    text = (run / "page.html").read_text()
    probe = ("<script>addEventListener('load', () => { document.title = JSON.stringify({pictures: "
             "[...document.images].map(i => i.naturalWidth), wide: document.documentElement.scrollWidth, "
             "shown: innerWidth, text: document.body.innerText.slice(0, 4000)}) })</script>")
    (run / "probed.html").write_text(text.replace("</body>", probe + "</body>"))
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               f"--window-size={width},2000", "--virtual-time-budget=5000"]
    page = subprocess.run([*browser, "--dump-dom", (run / "probed.html").as_uri()], capture_output=True, text=True,
                          timeout=120).stdout
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", page, re.DOTALL)[1]))
    assert len(seen["pictures"]) == 6 and all(side > 0 for side in seen["pictures"])
    assert seen["wide"] <= max(seen["shown"], 500), "Chromium's window is 500 pixels wide at least"
    assert f"{read_metrics(run)['AP']:.3f}" in seen["text"]

