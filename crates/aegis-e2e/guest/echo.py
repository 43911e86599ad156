# `echo.py PORT COUNT BYTES`: COUNT connections at once to that port of the host, each of which must give back BYTES.
import hashlib
import os
import socket
import sys
import threading

port, count, length = map(int, sys.argv[1:])
data = os.urandom(length)
failures = []


def talk():
    try:
        with socket.create_connection(("host.aegis.internal", port), timeout=120) as s:
            sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
            sender.start()
            received = hashlib.sha256()
            while part := s.recv(1 << 16):
                received.update(part)
            sender.join()
            if received.digest() != hashlib.sha256(data).digest():
                failures.append("other bytes came back")
    except OSError as e:
        failures.append(str(e))


threads = [threading.Thread(target=talk) for _ in range(count)]
[t.start() for t in threads]
[t.join() for t in threads]
print(failures or "ok")
