"""Sphinx configuration. Parameters come from the schema, commands from click, the API from docstrings."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import latex2mathml.converter
from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from parameter_page import write_parameter_page  # noqa: E402
from result_tables import write_result_tables  # noqa: E402

import discern  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "DISCERN"
author = "the DISCERN developers"
copyright = f"2026, {author}"
release = version = discern.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_click"]
exclude_patterns = [
    "_build",
    *(f"generated/{path.stem}.md" for path in (HERE.parent / "benchmarks" / "results").glob("*.json")),
]
default_role = "literal"
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs; a test executes them

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"DISCERN {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_math_renderer = "mathml"


def _inline_math(self: Any, node: nodes.math) -> None:
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _block_math(self: Any, node: nodes.math_block) -> None:
    self.body.append(f"<div class='math'>{latex2mathml.converter.convert(node.astext(), display='block')}</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Draw formulas with the browser's own MathML: the built pages work without a network."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))


generated = HERE / "generated"
generated.mkdir(exist_ok=True)
write_parameter_page(generated / "parameters.md")
write_result_tables(HERE.parent / "benchmarks" / "results", generated)
shutil.copyfile(HERE.parent / "Tutorial.ipynb", generated / "tutorial.ipynb")
