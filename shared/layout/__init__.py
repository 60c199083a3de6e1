"""The files of the calibration layout: writing and reading them."""
