"""The calibration folder on disk: what was asked for, what has been collected."""
