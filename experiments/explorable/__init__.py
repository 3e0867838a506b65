"""The story of docs/story.md, alive: one HTML file whose figures compute in the browser.

    python -m experiments.explorable [--output runs/explorable/story.html] [--fast]

It works from a folder, without a network. `models` trains what the page ships, `page.html` is its
text, `mathematics.js` all that it computes, held to JAX by tests/experiments/test_explorable.py,
`drawing.js` and `figures/` what is seen, and `page` puts them into one file.
"""
