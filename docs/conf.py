"""The site: `pip install -e '.[docs]'`, then
`sphinx-build -W --keep-going docs OUT`."""

import importlib.metadata

project = "rlhf_jax"
release = importlib.metadata.version("rlhf_jax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "rlhf_jax"
html_show_sphinx = False

# Docstrings name code by single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_rtype = False
