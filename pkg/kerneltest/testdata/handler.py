# SPDX-License-Identifier: Apache-2.0
# Answers the connection that it is started with, as inetd and systemd start
# programs. Appends "PARENT PEERPORT PID" to a file: who accepted, who closes.
import os, socket, sys

connection = socket.socket(fileno=0)
line = b"%d %d %d\n" % (os.getppid(), connection.getpeername()[1], os.getpid())
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
os.write(log, line)
connection.recv(4096)
connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nok")
