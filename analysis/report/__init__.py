"""Numbers → sentences, tables, figures and pages, written where they are asked for.

`write.analyze` is the way in. Nothing is imported here.
"""
