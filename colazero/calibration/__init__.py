"""A chosen calibration set as a thing: what it must be, its files, and its pictures."""
