"""Verification: the prompts that all variants draw."""

from producer.folder.calib_folder import CalibFolder
from producer.kinds.part import Part


def find_parts(folder: CalibFolder) -> list[Part]:
    return []
