"""The loops and everything that may fail: the only floor with threads, files and clocks."""
