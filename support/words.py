"""Numbers, names and colours as figures and tables show them."""
import math
import textwrap

ALGORITHMS = {"TD3": "#0072b2", "PPO": "#009e73", "SAC": "#cc79a7", "A2C": "#a08a00", "R2D1": "#d55e00", "DDPG": "#56b4e9",
              "REINFORCE": "#8a6a55", "BCQ": "#222222"}                # where a figure compares these, and all have memory


def number(x):
    """Three digits that matter."""
    return f"{float(f'{x:.3g}'):g}".replace("-", "\u2212")


def decimals(x):
    """Two decimals, or none from 10 on; a dash if it is no number."""
    digits = 2 if abs(x) < 10 else 0
    return f"{round(x, digits) + 0.0:.{digits}f}".replace("-", "\u2212") if math.isfinite(x) else "-"   # no minus before zero


def bounds(low, high):
    """An interval's ends in words, with a digit more where two would read as 1 though 1 is left out."""
    inside = low <= 1 <= high
    return " to ".join(decimals(x) if inside or decimals(x) != "1.00" else f"{x:.3f}" for x in (low, high))


def text(value):
    """A flag's value in words, the same however it is written: 1e3 is 1000.0."""
    try:
        return f"{float(value if isinstance(value, str) else repr(value)):.10g}"
    except ValueError:
        return str(value)


def middle(text, most):
    """The text, or its two ends if it has more than `most` letters."""
    return text if len(text) <= most else f"{text[:most // 2 - 1]}...{text[2 - most + most // 2:]}"


def wrap(text, width):
    """The text with lines of at most so many letters; a line's end stays one."""
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
