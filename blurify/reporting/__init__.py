"""The report: what was measured on a model, before and after, or adapted, as one page and as figures in files.

    content   what there is to show, as rows of figures; shared by the page and the files
    words     figures in words: 0.853 -> 85.3%
    heatmaps  the colour scale of the equivariance maps, and maps as small PNGs
    charts    where each mark of the page's own charts goes
    page      all that as one self-contained HTML file (needs jinja2)
    figures   the charts again as PNG and SVG files (needs matplotlib)

jinja2 and matplotlib come with `pip install 'blurify[report]'`; they are imported only when something is drawn.
"""

from blurify.reporting.content import MOST, Report
from blurify.reporting.figures import check_figures, write_figures
from blurify.reporting.page import render, require

__all__ = ["MOST", "Report", "check_figures", "render", "require", "write_figures"]
