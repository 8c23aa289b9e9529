"""Whether the colours of the pictures can be told apart, also by people without one of the three kinds of cones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from discern.plots.colours import COLOURS, MARKERS, STAGES, markers, palette

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
_EYES = {
    "ordinary": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def _lab(colour: str, eyes: str) -> np.ndarray:
    """Return a colour as somebody sees it, in CIE Lab."""
    shares = np.array(to_rgb(colour))
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    xyz = _TO_XYZ @ np.clip(np.array(_EYES[eyes]) @ linear, 0, 1) / _WHITE
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _nearest(colours: list[str], eyes: str) -> float:
    seen = [_lab(colour, eyes) for colour in colours]
    return min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(seen, 2))


def test_distances_are_those_of_cie_lab():
    np.testing.assert_allclose(_lab("#ffffff", "ordinary"), [100, 0, 0], atol=0.01)
    np.testing.assert_allclose(_lab("#ff0000", "ordinary"), [53.24, 80.09, 67.20], atol=0.01)
    assert _nearest(["#00a000", "#c05000"], "deuteranopia") < 20 < _nearest(["#00a000", "#c05000"], "ordinary")


@pytest.mark.parametrize("eyes", _EYES)
def test_everybody_tells_the_colours_apart(eyes: str):
    assert _nearest(list(COLOURS), eyes) > 16
    assert _nearest(list(STAGES.values()), eyes) > 40
    assert _nearest([*COLOURS[:2], "#ffffff"], eyes) > 30


def test_tab10_would_not_do():
    assert _nearest(["#1f77b4", "#9467bd"], "protanopia") < 10


def test_fewer_than_nine_colours_are_those_of_okabe_and_ito():
    okabe_ito = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
    assert set(palette(range(8)).values()) == okabe_ito


@pytest.mark.parametrize("number", [1, 8, 9, 20, 21, len(COLOURS) * len(MARKERS)])
def test_each_category_has_a_colour_and_marker_of_its_own(number: int):
    names = range(number)
    looks = set(zip(palette(names, skip=0).values(), markers(names, skip=0).values(), strict=True))

    assert len(looks) == number
    assert list(palette(names)) == list(markers(names)) == list(names)


def test_two_columns_in_one_figure_share_no_colour():
    batches, types = palette(["a", "b", "c"]), palette(["T", "B"], skip=3)

    assert set(batches.values()).isdisjoint(types.values())
