"""The calibration set: chosen, checked, measured and saved (`sets`), and shown (`picture`)."""
