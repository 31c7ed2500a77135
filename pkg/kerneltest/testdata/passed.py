# SPDX-License-Identifier: Apache-2.0
# Accepts, and hands the descriptor to another process (SCM_RIGHTS), which
# answers and closes. Logs "PID PEERPORT CLOSER".
import os, socket, sys

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = os.fork()
if child == 0:
    ours.close()
    while True:
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        if not descriptors:
            sys.exit(0)  # the parent has gone
        theirs.recv(1)  # until it has closed its own descriptor, so that ours is the last
        connection = socket.socket(fileno=descriptors[0])
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nok")
        connection.close()

theirs.close()
listener = socket.socket()
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen(128)
while True:
    connection, client = listener.accept()
    os.write(1, b"%d %d %d\n" % (os.getpid(), client[1], child))
    socket.send_fds(ours, [b"."], [connection.fileno()])
    connection.close()
    ours.send(b".")
