"""Format numbers for the report. Undefined values are shown as "–"."""

from producer.results.results import Metrics

NONE = "–"


def percent(value: float | None) -> str:
    """Format a fraction as percent: 0.0312 gives "3.1%"."""
    return NONE if value is None else f"{percent_digits(value)}%"


def percent_digits(value: float) -> str:
    """Format a fraction as percent without the sign, short enough for a table: 0.0312 gives "3.1"."""
    # Round first, so that 9.96 gives 10 and not 10.0.
    scaled = float(f"{value * 100:.1e}")
    if scaled >= 10 or scaled == 0:
        return f"{scaled:.0f}"
    for digits, least in enumerate((1, 0.1, 0.01), start=1):
        if scaled >= least:
            return f"{scaled:.{digits}f}"
    single = float(f"{scaled:.0e}")
    mantissa, exponent = f"{single:.0e}".split("e")
    return f"{single:g}" if single >= 0.001 else f"{mantissa}e{int(exponent)}"


def error_with_interval(metrics: Metrics) -> str:
    """Format a relative error with its interval, if there is one: "3.1% (2.8–3.5)"."""
    low, high = metrics.relative_error_low, metrics.relative_error_high
    if metrics.relative_error is None or low is None or high is None:
        return percent(metrics.relative_error)
    return f"{percent(metrics.relative_error)} ({percent_digits(low)}–{percent_digits(high)})"


def decibel(metrics: Metrics) -> str:
    """Format an SQNR. It is infinite if there is no error."""
    if metrics.sqnr_db is None:
        return "∞" if metrics.relative_error == 0 else NONE
    return f"{metrics.sqnr_db:.1f} dB"


def duration(seconds: float) -> str:
    """Format seconds: "0.50 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def moment(text: str) -> str:
    """Format a time in UTC: "2026-01-02T03:04:05Z" gives "2026-01-02 03:04:05"."""
    return text[:19].replace("T", " ")


def significant(value: float | None) -> str:
    """Format a number with three significant digits."""
    return NONE if value is None else f"{value:.3g}"


def cosine(value: float | None) -> str:
    """Format a cosine similarity with enough digits to tell it from 1."""
    if value is None:
        return NONE
    return f"{value:.4f}" if value < 0.9995 else f"1 − {1 - value:.2g}" if value < 1 else "1"
