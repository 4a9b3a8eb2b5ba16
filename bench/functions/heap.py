# As heap.rs, with NumPy when the name says so. Answers with the time at its first instruction.
import os
import time

if os.environ.get("HEAP_NUMPY"):
    import numpy

held = [bytes(400) for _ in range((int(os.environ["HEAP_MIB"]) << 20) // 440)]


def main():
    return str(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
