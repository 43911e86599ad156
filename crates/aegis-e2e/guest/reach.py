# Tries to reach each argument `PROTOCOL:ADDRESS:PORT` and prints one line for each: the argument and what came of it.
import errno
import socket
import sys

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

for argument in sys.argv[1:]:
    protocol, address, port = argument.split(":")
    with socket.socket(socket.AF_INET, KINDS[protocol]) as s:
        s.settimeout(60)
        try:
            s.connect((address, int(port)))
            if protocol == "udp":
                s.send(b"x")
                s.recv(1)
            outcome = "reached"
        except TimeoutError:
            outcome = "silence"
        except OSError as e:
            outcome = errno.errorcode[e.errno]
    print(argument, outcome, flush=True)
