# SPDX-License-Identifier: Apache-2.0

# Opens connections at two places, and keeps its ends: the other side closes.
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


sys.stdin.readline()  # now we are watched
for _ in range(3):
    open_in_pool()
for _ in range(2):
    open_for_report()
print("leaked", flush=True)
sys.stdin.readline()
