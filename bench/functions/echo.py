"""Gives back the body as it came."""

import spry


def main(request: spry.Request):
    return request.body
