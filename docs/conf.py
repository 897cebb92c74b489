"""The site: `pip install -e '.[docs]'`, then
`sphinx-build -W --keep-going docs OUT`."""

import importlib.metadata

project = "rlhf_jax"
release = importlib.metadata.version("rlhf_jax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax",
              "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = "rlhf_jax"
html_show_sphinx = False

# Docstrings are plain text that reStructuredText reads: code in single
# backticks, tables indented after "::", Google's sections.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True
napoleon_use_rtype = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
