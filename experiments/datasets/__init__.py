"""The machinery behind `experiments.data`: published files, TFDS builders, reading and caching."""
