"""How figures look: sizes, colours for light and dark pages, PNG bytes. Loads matplotlib late."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches; at `SCREEN_DPI` a figure is as wide as the page's column, so that text keeps its size.
WIDTH = 9.6
SCREEN_DPI = 100
PNG_DPI = 200


@dataclass(frozen=True)
class Theme:
    """Colours of one scheme.

    Attributes:
        name: "light" or "dark".
        paper, ink, faint, grid: background, text, secondary text, lines of the grid.
        series: apart from each other also for the colour-blind (after Okabe and Ito), in the order
            in which they are handed out.
        point: colour of operating points.
        plain: colour of networks to compare with.
    """

    name: str
    paper: str
    ink: str
    faint: str
    grid: str
    series: tuple[str, ...]
    point: str
    plain: str

    def colour(self, index: int) -> str:
        """The colour of series `index`."""
        return self.series[index % len(self.series)]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1d2126",
    faint="#5c6670",
    grid="#dfe3e8",
    series=(
        *("#0072b2", "#d55e00", "#009e73", "#8a6d00", "#56b4e9"),
        *("#a8327d", "#5b5fc7", "#6b7785"),
    ),
    point="#9b3f83",
    plain="#1d2126",
)
DARK = Theme(
    name="dark",
    paper="#1b1f24",
    ink="#e8eaed",
    faint="#a3acb6",
    grid="#363d45",
    series=(
        *("#56b4e9", "#f0934a", "#2cc59b", "#e6c84a", "#9db7ff"),
        *("#e58cc4", "#b3a5ff", "#a8b3bf"),
    ),
    point="#e39cc5",
    plain="#e8eaed",
)
MARKERS = ("o", "s", "D", "^", "v", "P")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def require_matplotlib() -> None:
    """Raises ImportError, saying what to install, if figures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib, which is not installed: pip install 'anchornet_ext[report]'"
        ) from error


def new_figure(theme: Theme, height: float, width: float = WIDTH) -> Figure:
    """An empty figure of the theme, without any global state (no pyplot, no backend chosen)."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=SCREEN_DPI, facecolor=theme.paper)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, theme: Theme, *, grid: bool = True) -> None:
    """Colours, a light grid and no box."""
    axes.set_facecolor(theme.paper)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.faint)
    axes.tick_params(colors=theme.faint, labelcolor=theme.ink, labelsize=10)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    axes.title.set_color(theme.ink)
    axes.title.set_fontsize(11)
    if grid:
        axes.grid(True, color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)


def add_legend(figure: Figure, axes: Axes, theme: Theme) -> None:
    """A legend of what is labelled in `axes`, if anything is, below all axes: it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(len(label) for label in labels)
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(len(handles), 4 if longest < 24 else 3 if longest < 36 else 2),
            fontsize=10,
            frameon=False,
            labelcolor=theme.ink,
        )


def plain_text(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def png(figure: Figure, dpi: int | None = None) -> bytes:
    """The figure as a PNG file of `PNG_DPI`, the same bytes for the same figure."""
    dpi = dpi or PNG_DPI
    buffer = BytesIO()
    # Software and time would make the file differ from run to run.
    figure.savefig(
        buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()
