"""Runs command lines in the login shell, a few at a time, and prints what came of each.

stdin: {NAME: {"line": COMMAND LINE, "env": {...}}, ...}; stdout: {NAME: [CODE, STDOUT, STDERR, SECONDS], ...}
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import time

AT_ONCE = 3
# A client that takes longer hangs.
PATIENCE = 60


def run(cell):
    started = time.monotonic()
    command = [os.environ["SHELL"], "-c", cell["line"]]
    try:
        ended = subprocess.run(
            command,
            env={**os.environ, **cell["env"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        result = [ended.returncode, ended.stdout, ended.stderr]
    except subprocess.TimeoutExpired:
        result = [-1, "", f"not within {PATIENCE} s"]
    return [*result, time.monotonic() - started]


cells = json.load(sys.stdin)
with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    print(json.dumps(dict(zip(cells, pool.map(run, cells.values())))))
