"""The calibration folder: what is wanted, and what has been collected."""
