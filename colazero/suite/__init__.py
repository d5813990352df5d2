"""A grid of cells: planned, reused, executed here or on Ray, and looked after until all ended.

`run` holds the ways in. Nothing is imported here: a worker's process starts in this package.
"""
