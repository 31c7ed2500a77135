# SPDX-License-Identifier: Apache-2.0
# Three processes that accept on the listener of their parent. Logs "PID PEERPORT".
import os, signal, socket, sys

listener = socket.socket()
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(128)
children = []
for _ in range(3):
    child = os.fork()
    if child:
        children.append(child)
        continue
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        connection, client = listener.accept()
        os.write(1, b"%d %d\n" % (os.getpid(), client[1]))
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nok")
        connection.close()


def end(*_):
    for child in children:
        os.kill(child, signal.SIGTERM)
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
