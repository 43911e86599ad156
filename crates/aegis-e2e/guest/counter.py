# Remembers in its memory how often it was asked on port 80, and answers "PID COUNT QUESTION".
import os
import socket

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("", 80))
server.listen(64)
count = 0
while True:
    client, _ = server.accept()
    try:
        question = client.recv(100).decode().strip()
        count += 1
        client.sendall(b"%d %d %s\n" % (os.getpid(), count, question.encode()))
    except OSError:
        # The connection was cut; the next one is not.
        pass
    client.close()
