"""Times boto3's own way to credentials: URI MARKER COUNT, the token's file in the environment as the SDKs want it."""

import json
import os
import sys
import time

from botocore.credentials import ContainerProvider

uri, marker, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
environ = {**os.environ, "AWS_CONTAINER_CREDENTIALS_FULL_URI": uri}
times = []
for _ in range(count + 1):
    # A program fetches once and again after most of an hour, so nothing is kept from one fetch to the next.
    started = time.perf_counter()
    provider = ContainerProvider(environ=environ)
    credentials = provider.load()
    times.append((time.perf_counter() - started) * 1e6)
    assert credentials.access_key == marker, credentials.access_key
    del provider, credentials
times = sorted(times[1:])
print(json.dumps({"p50_us": times[(len(times) - 1) // 2]}))
