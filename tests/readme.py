"""The README's block of what `make demo` prints, and the shape of such lines."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

_MASKS = (
    (r"\b[0-9a-f]{12}\b", "ID"),
    (r"\b(demo|tiny-sd3)(?=,)", "MODEL"),
    (r"\b(demo|calibration)_data\b", "FOLDER"),
    (r"\b(diffusionkit|published) forward pass", "REFERENCE forward pass"),
    (r"\b(every step|one step in \d+)", "STEPS"),
    # A command that is repeated says how much it found.
    (r"(enqueued), \d+ collected$", r"\1"),
    (r"\d+(,\d{3})*(\.\d+)?", "N"),
    (r"N(, N)+ bits", "N bits"),
    (r"\b[KMGT]B\b", "BYTES"),
    (r"\S.* wins on N prompts: .*(?=\. PSNR)", "WINNER wins on N prompts: REASON"),
    (r"\bN (image|layer|prompt|sample|task)s\b", r"N \1"),
    (r"N (image|prompt|task) enqueued", "N THING enqueued"),
    (r" +", " "),
)


def demo_block() -> list[str]:
    """Return the lines that `make demo` prints, as the README has them."""
    (block,) = re.findall(r"each line only\s+once:\n\n((?:    .*\n)+)", README.read_text(encoding="utf-8"))
    return [line.strip() for line in block.splitlines()]


def shape(line: str) -> str:
    """Mask what differs between runs: ids, figures, units, model, folder, the proof's winner and reason."""
    for pattern, mask in _MASKS:
        line = re.sub(pattern, mask, line)
    return line.strip()


def is_progress(line: str) -> bool:
    """Whether it is one of the lines that a run prints while it waits."""
    return re.match(r"calibration \d+/\d+", line) is not None
