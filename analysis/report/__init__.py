"""Numbers → sentences, tables, figures and pages. `write.analyze` is the way in."""
