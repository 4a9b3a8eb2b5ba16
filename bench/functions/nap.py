"""Busy for twenty milliseconds without using the CPU, so that a kill at any moment hits it at work."""

import time


def main(params):
    time.sleep(0.02)
    return {"message": "hello, world!"}
