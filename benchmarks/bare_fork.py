"""Forks per second of the smallest interpreter: fork, compute, write, exit, read, reap.

The floor under any scheme with a Python process per job. Imports nothing, for what is imported
is copied.
"""

import os
import sys
import time

count = int(sys.argv[1])
started = time.perf_counter()
for number in range(count):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"%d" % (number + 1))
        os._exit(0)
    os.close(writing)
    os.read(reading, 100)
    os.close(reading)
    os.waitpid(pid, 0)
print(count / (time.perf_counter() - started))
