"""Calls a Ray actor, as it is told on its one connection.

    calls.py DIRECTORY

bench/src/subjects/foreign.rs describes how. Ray keeps its files in DIRECTORY.
"""

import array
import asyncio
import os
import socket
import sys
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import ray  # noqa: E402  (its settings come first)

PAYLOAD = b"0123456789abcdef0123456789abcdef"


@ray.remote(num_cpus=0, max_concurrency=1000)
class Echo:
    async def say(self, text):
        return b"Echo: " + text


async def worker(actor, end, times):
    while (begun := time.perf_counter_ns()) < end:
        answer = await actor.say.remote(PAYLOAD)
        if answer != b"Echo: " + PAYLOAD:
            raise RuntimeError("an answer of another content")
        times.append(time.perf_counter_ns() - begun)


async def run(actor, in_flight, millis):
    begun = time.perf_counter_ns()
    times = array.array("I")
    end = begun + millis * 1_000_000
    await asyncio.gather(*(worker(actor, end, times) for _ in range(in_flight)))
    return time.perf_counter_ns() - begun, times


def main():
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 1024 * 1024,
        _temp_dir=os.path.join(sys.argv[1], "ray"),
        _node_ip_address="127.0.0.1",
    )
    actor = Echo.remote()
    ray.get(actor.say.remote(PAYLOAD))
    loop = asyncio.new_event_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"ready 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        control, _ = listener.accept()
    with control, control.makefile("r") as lines:
        for line in lines:
            _, in_flight, millis = line.split()
            took, times = loop.run_until_complete(run(actor, int(in_flight), int(millis)))
            if sys.byteorder == "big":
                times.byteswap()
            control.sendall(f"{took} {len(times)}\n".encode() + times.tobytes())


main()
