"""One file that shows a run: report.html, readable without a network.

  series.py    metrics.jsonl, read once, and thinned to be drawn
  folder.py    all else that a run left, finished or not
  findings.py  what an expert would point at
  charts.py    which metrics are drawn together
  tables.py    figures, times, data and settings, as rows of cells
  page.py      all of it as HTML, with page.html, page.css and page.js
"""
