"""Behind `experiments.common.data`: published files, TFDS builders; data that are drawn."""
