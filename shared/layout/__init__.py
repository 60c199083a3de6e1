"""Files of the calibration layout, written and read."""
