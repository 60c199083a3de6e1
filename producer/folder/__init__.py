"""The calibration folder on disk: what was asked for, and what has been collected."""
