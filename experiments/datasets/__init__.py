"""Behind `experiments.data`: published files, TFDS builders; and data sets that are drawn."""
