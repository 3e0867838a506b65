"""The story of docs/story.md, alive: one HTML file whose figures compute in the browser.

    python -m experiments.explorable [--output runs/explorable/story.html] [--models-from PAGE]

It works from a folder, without a network. `models` trains what the page ships, `page.html` is its
text, `mathematics.js` what it computes, held to JAX by tests/experiments/test_explorable.py,
`drawing.js` and `figures/` how it is shown, `page` puts them into one file, and `screenshots` takes
a picture of every figure of it.
"""
