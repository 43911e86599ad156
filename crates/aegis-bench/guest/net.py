# `net.py ADDRESS PORT BYTES RUNS [DENIED]`: moves bytes between the guest and a server of the host, and prints times in
# ms; also of the refusal of an address that is denied.
import socket
import struct
import sys
import time

address, port, count, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
denied_address = sys.argv[5:]
block = bytes(1 << 18)
view = memoryview(bytearray(1 << 18))


def timed(name, work):
    began = time.monotonic()
    work()
    print(name, (time.monotonic() - began) * 1000, flush=True)


def connect():
    socket.create_connection((address, port), timeout=60).close()


def denied():
    try:
        socket.create_connection((denied_address[0], 80), timeout=60)
        sys.exit("it was not denied")
    except OSError:
        pass


def transfer(kind):
    with socket.create_connection((address, port), timeout=60) as s:
        s.sendall(kind + struct.pack(">Q", count))
        left = count
        while left:
            if kind == b"d":
                moved = s.recv_into(view, min(left, len(view)))
                assert moved, "it was cut off"
            else:
                moved = s.send(block[: min(left, len(block))])
            left -= moved
        assert s.recv(1), "it was cut off"


connect()
for _ in range(runs):
    timed("download", lambda: transfer(b"d"))
    timed("upload", lambda: transfer(b"u"))
    timed("connect", connect)
    if denied_address:
        timed("denied", denied)
