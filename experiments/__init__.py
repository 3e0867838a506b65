"""Scripts to read from top to bottom, and the data they train on."""
