# Port 80 echoes until the client has said everything, and then says how much that was.
# Port 81 says goodbye at once, closes that half, and prints how much came afterwards.
# Port 8080 answers HTTP with the path, and becomes an echo when it is asked to upgrade.
import socket
import threading


def echo(client):
    total = 0
    while data := client.recv(65536):
        total += len(data)
        client.sendall(data)
    client.sendall(b"|%d" % total)


def goodbye(client):
    client.sendall(b"goodbye")
    client.shutdown(socket.SHUT_WR)
    total = 0
    while data := client.recv(65536):
        total += len(data)
    print("after goodbye:", total, flush=True)


def http(client):
    head = b""
    while b"\r\n\r\n" not in head:
        head += client.recv(65536)
    head, _, rest = head.partition(b"\r\n\r\n")
    path = head.split(b" ")[1]
    if b"\r\nupgrade: websocket" in head.lower():
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + rest
        )
        echo(client)
    else:
        client.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path)
        )


def handle(client, how):
    try:
        how(client)
    except OSError:
        pass
    client.close()


def serve(port, how):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", port))
    server.listen(256)
    while True:
        client, _ = server.accept()
        threading.Thread(target=handle, args=(client, how), daemon=True).start()


threading.Thread(target=serve, args=(81, goodbye), daemon=True).start()
threading.Thread(target=serve, args=(8080, http), daemon=True).start()
serve(80, echo)
