"""Values as a reader wants them: numbers short, with as many digits as they mean; parts as Python writes them."""

import json
import math

from mimkit.records import as_text, is_record


def count(value: float) -> str:
    """A whole number: 3,925."""
    return f"{value:,.0f}"


def short(value: float | None) -> str:
    """About three significant digits: 0.412, 38.9, 1,204, 1.5e-4; a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if value == 0 or 1000 <= size < 1e7:
        return count(value)
    if size >= 1e7 or size < 1e-3:
        digits, exponent = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"


def percent(value: float | None) -> str:
    """A number that is already in percent: 45.2 %."""
    return "–" if value is None else f"{value:.1f} %"


def signed(value: float) -> str:
    """A difference: +6.3 or −3.1."""
    rounded = f"{abs(value):.1f}"
    return rounded if rounded == "0.0" else f"{'+' if value > 0 else '−'}{rounded}"


def show(value: object) -> str:
    """A value of `run.json` as a text: a plain text as it is, parts as calls, anything else as JSON."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    try:
        if is_record(value):
            return as_text(value)
        if isinstance(value, list) and value and all(map(is_record, value)):
            return ", ".join(map(as_text, value))
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "…"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round values between two bounds."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two positive bounds of a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001]
        if len(found) <= 6:
            return found
    return found[:: math.ceil(len(found) / 6)]


def tick_labels(values: list[float], *, log: bool = False) -> list[str]:
    """Labels of ticks, on a linear axis all in one form: the same decimals, or 12k, or 0.5M."""
    if log:
        return [f"{value:,g}" if 1e-3 <= value < 1e6 else short(value) for value in values]
    size = max((abs(value) for value in values), default=0)
    if size and (size < 1e-2 or size >= 1e9):
        return [short(value) for value in values]
    for least, unit, name in ((1_000_000, 1_000_000, "M"), (10_000, 1000, "k")):
        if size >= least and all(value % (unit / 100) == 0 for value in values):
            return ["0" if value == 0 else f"{value / unit:,g}{name}" for value in values]
    decimals = next(d for d in range(8) if d == 7 or all(math.isclose(v, round(v, d), abs_tol=1e-9) for v in values))
    return [f"{value:,.{decimals}f}" for value in values]
