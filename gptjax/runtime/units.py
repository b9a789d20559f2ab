"""Numbers formatted for display."""


def sig3(number: float) -> str:
    """Formats with three significant digits: 3,740, 139, 15.8, 2.60, 0.0012."""
    if number >= 100:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:#.3g}" if number >= 0.001 else f"{number:.2g}"


def si(number: float) -> str:
    """Formats with three digits and a unit: 811M, 32.8B, 1.06T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{sig3(number / size)}{unit}"
    return sig3(number)


def human_bytes(number: float) -> str:
    """Formats a number of bytes: 3.20 GiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{sig3(number / size)} {unit}"
    return f"{sig3(number / 2**10)} KiB"
