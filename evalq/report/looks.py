"""Styles of the figures. The colours of the tiers are the report's own, in every style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalq.report.palette import Tier

__all__ = ["STYLES", "Look"]


@dataclass(frozen=True)
class Look:
    """How figures look.

    Args:
        dark: on a dark ground.
        text: size of ordinary text in points; marks and other texts follow it.
        zoom: of the figure's sides in inches; smaller makes texts larger on the page.
    """

    dark: bool
    text: float
    zoom: float

    @property
    def ground(self) -> str:
        """The background."""
        return "#171e25" if self.dark else "#ffffff"

    @property
    def ink(self) -> str:
        """Texts."""
        return "#e6edf3" if self.dark else "#1b2733"

    @property
    def soft(self) -> str:
        """Axes and ticks."""
        return "#a3b0bc" if self.dark else "#56626e"

    @property
    def line(self) -> str:
        """Lines between marks."""
        return "#6b7985" if self.dark else "#9aa5af"

    @property
    def on_loss(self) -> str:
        """Texts on the strongest shade of a loss."""
        return "#10151a" if self.dark else "#ffffff"

    @property
    def scale(self) -> list[str]:
        """From a loss over nothing to a gain."""
        if self.dark:
            return ["#ff8f63", self.ground, "#3cc8c0"]
        return ["#b33c00", self.ground, "#00736c"]

    @property
    def small(self) -> float:
        """Size of labels."""
        return self.text - 1

    @property
    def tiny(self) -> float:
        """Size of the numbers in cells."""
        return self.text * 0.72

    @property
    def mark(self) -> float:
        """Size of marks."""
        return self.text * 0.78

    def colour(self, tier: Tier) -> str:
        """A tier's colour on this ground."""
        return tier.dark if self.dark else tier.light

    def size(self, width: float, height: float) -> tuple[float, float]:
        """Sides of a figure in inches."""
        return width * self.zoom, height * self.zoom

    @property
    def settings(self) -> dict[Any, Any]:
        """For ``matplotlib.rc_context``."""
        return {
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": self.text,
            "text.color": self.ink,
            "figure.facecolor": self.ground,
            "axes.facecolor": self.ground,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": self.soft,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "xtick.color": self.soft,
            "ytick.color": self.soft,
            "axes.grid": False,
            "grid.color": "#2d3741" if self.dark else "#e6e9eb",
            "svg.hashsalt": "evalq",
            "svg.fonttype": "path",
            "pdf.fonttype": 42,
            "text.usetex": False,
            "text.parse_math": False,
        }


STYLES: Mapping[str, Look] = {
    "paper": Look(dark=False, text=9.0, zoom=1.0),
    "slide": Look(dark=False, text=14.0, zoom=1.2),
    "dark": Look(dark=True, text=9.0, zoom=1.0),
}
"""``paper`` for a column or a page, ``slide`` to be read from afar, ``dark`` for a dark ground."""
