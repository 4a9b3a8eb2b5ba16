"""How numbers are spread: {"values": [...]} -> count, mean, and percentiles. An example of a function with a package."""

import numpy

WANTED = [5, 25, 50, 75, 95]


def main(params):
    try:
        values = numpy.asarray(params["values"], dtype=float)
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f'send {{"values": [numbers]}}: {error!r}'}
    if values.ndim != 1 or not values.size or not numpy.isfinite(values).all():
        return {"error": 'send {"values": [at least one finite number]}'}
    spread = dict(zip(map(str, WANTED), numpy.percentile(values, WANTED).tolist()))
    return {"count": values.size, "mean": float(values.mean()), "percentiles": spread}
