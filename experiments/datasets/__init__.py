"""Behind `experiments.data`: published files, TFDS builders, reading; and data sets that are drawn."""
