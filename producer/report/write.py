"""Write the report of a calibration folder."""

from pathlib import Path

from producer.folder.calib_folder import CalibFolder
from producer.report.contents import read_contents
from producer.report.render import render_report
from shared.files import write_atomically


def write_report(folder: CalibFolder) -> Path:
    """Write report.html of all that the folder holds; return its path.

    Raises:
        InputError: it holds no run.
    """
    write_atomically(folder.report_path, render_report(read_contents(folder)).encode())
    return folder.report_path
