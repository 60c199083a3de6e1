"""Sixteen Macs, and how fast each is.

Peaks in float32 are GPU cores x 128 x 2 x clock, with the clocks that hmc-tech.com/gpu lists; Apple says
2.6 for the M1 and 3.6 for the M2. A GPU is taken to reach 55% of its peak, as in docs/performance.md. The
largest chip is the M3 Ultra: there is no M4 Ultra.
"""

from dataclasses import dataclass

REACHED = 0.55


@dataclass(frozen=True, slots=True)
class Chip:
    """One Mac's."""

    name: str
    teraflops: float
    """Its peak."""

    @property
    def speed(self) -> float:
        """Floating point operations a second."""
        return REACHED * self.teraflops * 1e12


CHIPS = (
    Chip("M1", 2.6),
    Chip("M1", 2.6),
    Chip("M1 Pro", 5.3),
    Chip("M1 Max", 10.6),
    Chip("M1 Ultra", 21.2),
    Chip("M2", 3.6),
    Chip("M2", 3.6),
    Chip("M2 Pro", 6.8),
    Chip("M2 Max", 13.6),
    Chip("M2 Ultra", 21.5),
    Chip("M3", 3.6),
    Chip("M3 Pro", 6.4),
    Chip("M3 Max", 14.3),
    Chip("M3 Ultra", 28.6),
    Chip("M4", 3.8),
    Chip("M4 Max", 13.7),
)
