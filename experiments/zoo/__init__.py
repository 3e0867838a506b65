"""Every row of docs/methods.md and docs/bounds.md, trained: `python -m experiments.zoo`."""
