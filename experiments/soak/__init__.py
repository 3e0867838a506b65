"""A run that meets faults, what is done to it, and the comparison at the end."""
