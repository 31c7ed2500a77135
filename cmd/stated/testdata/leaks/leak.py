# SPDX-License-Identifier: Apache-2.0
"""Leaks three connections in one way, says who must hold them, and waits for
the end of its standard input."""
import http.client
import json
import os
import select
import socket
import struct
import sys
import threading

COUNT = 3
keep = []


def listener(backlog=16):
    l = socket.socket()
    l.bind(("127.0.0.1", 0))
    l.listen(backlog)
    keep.append(l)
    return l


def pair(l):
    """One connection: the peer's end, and ours."""
    c = socket.create_connection(l.getsockname())
    a, _ = l.accept()
    return c, a


def mine(sockets):
    keep.extend(sockets)
    return [[os.getpid(), [s.fileno()]] for s in sockets]


def body():
    """HTTP responses whose body is never read, nor closed. The server closes
    when its answer was read, as a read takes the end of file with the data before
    it where both are there."""
    l = listener()
    answered = threading.Semaphore(0)

    def serve():
        while True:
            a, _ = l.accept()
            while b"\r\n\r\n" not in a.recv(65536):
                pass
            a.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
            answered.acquire()
            a.close()

    threading.Thread(target=serve, daemon=True).start()
    fds = []
    for _ in range(COUNT):
        conn = http.client.HTTPConnection(*l.getsockname())
        conn.request("GET", "/")
        fds.append(conn.sock.fileno())
        keep.append((conn, conn.getresponse()))
        answered.release()
    return [[os.getpid(), [fd]] for fd in fds]


def not_accepted():
    """The accept loop is stuck."""
    l = listener()
    for _ in range(COUNT):
        with socket.create_connection(l.getsockname()) as c:
            c.send(b"anybody there?")
    return [[os.getpid(), []]] * COUNT


def drained():
    """The end of file is read, and ignored."""
    l = listener()
    sockets = []
    for _ in range(COUNT):
        c, a = pair(l)
        c.send(b"bye")
        c.close()
        while a.recv(100):
            pass
        sockets.append(a)
    return mine(sockets)


def data_unread():
    l = listener()
    sockets = []
    for _ in range(COUNT):
        c, a = pair(l)
        c.send(b"unread")
        c.close()
        sockets.append(a)
    return mine(sockets)


def eof_unread():
    """All data is read, the end of file never."""
    l = listener()
    sockets = []
    for _ in range(COUNT):
        c, a = pair(l)
        c.send(b"bye")
        a.recv(3, socket.MSG_WAITALL)
        c.close()
        sockets.append(a)
    return mine(sockets)


def child(work=lambda: None):
    """A child that stays until the end of standard input, and what gives its answer."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, json.dumps(work()).encode() + b"\n")
        sys.stdin.read()
        os._exit(0)
    os.close(w)
    answer = os.fdopen(r)
    return pid, lambda: json.loads(answer.readline())


def inherited():
    """A child has the descriptors; the parent closes its own."""
    l = listener()
    ends = [pair(l) for _ in range(COUNT)]
    fds = [a.fileno() for _, a in ends]

    def work():
        for c, _ in ends:
            c.close()

    pid, answer = child(work)
    answer()
    for c, a in ends:
        a.close()
        c.close()
    return [[pid, [fd]] for fd in fds]


def passed():
    """Passed over a unix socket, and closed by the sender."""
    l = listener()
    here, there = socket.socketpair(socket.AF_UNIX)
    pid, answer = child(lambda: list(socket.recv_fds(there, 1, COUNT)[1]))
    sockets = []
    for _ in range(COUNT):
        c, a = pair(l)
        sockets.append(a)
        c.close()
    socket.send_fds(here, [b"x"], [a.fileno() for a in sockets])
    for a in sockets:
        a.close()
    return [[pid, [fd]] for fd in answer()]


def hidden():
    """Reset while in CLOSE_WAIT: ss does not show them."""
    l = listener()
    sockets = []
    for _ in range(COUNT):
        c, a = pair(l)
        c.shutdown(socket.SHUT_WR)
        while a.recv(100):
            pass
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.close()
        sockets.append(a)
    return mine(sockets)


def waited():
    """A thread waits to send on one, an epoll set has another, nobody the third."""
    l = listener()
    sockets = []
    for _ in range(COUNT):
        c, a = pair(l)
        c.shutdown(socket.SHUT_WR)
        while a.recv(100):
            pass
        keep.append(c)
        sockets.append(a)
    threading.Thread(target=sockets[0].sendall, args=(bytes(64 << 20),), daemon=True).start()
    epoll = select.epoll()
    epoll.register(sockets[1].fileno(), select.EPOLLPRI)
    keep.append(epoll)
    return mine(sockets)


def correct():
    """Answers and closes, again and again; and has idle connections open."""
    l = listener()

    def serve():
        while True:
            a, _ = l.accept()
            while data := a.recv(100):
                a.sendall(data)
            a.close()

    threading.Thread(target=serve, daemon=True).start()
    c, a = pair(listener())
    keep.extend((c, a))
    pause = threading.Event()

    def slowly():
        while not pause.wait(0.02):
            with socket.create_connection(l.getsockname()) as c:
                c.sendall(b"ping")
                c.recv(100)

    threading.Thread(target=slowly, daemon=True).start()
    return []


print(json.dumps(globals()[sys.argv[1]]()), flush=True)
sys.stdin.read()
os._exit(0)
