# SPDX-License-Identifier: Apache-2.0

# Opens connections at two places, and keeps its ends: the other side closes.
# With an argument it then goes on as another program, which inherits them.
import os
import socket
import sys

listener = socket.create_server(("127.0.0.1", 0))
kept = []


def connect():
    c = socket.socket()
    c.connect(listener.getsockname())
    listener.accept()[0].close()
    kept.append(c)


def open_in_pool():
    connect()


def open_for_report():
    connect()


print("ready", flush=True)
sys.stdin.readline()  # now we are watched
for _ in range(3):
    open_in_pool()
for _ in range(2):
    open_for_report()
if len(sys.argv) > 1:
    for c in kept:
        c.set_inheritable(True)
    os.execvp("sh", ["sh", "-c", "echo leaked; read line"])
print("leaked", flush=True)
sys.stdin.readline()
