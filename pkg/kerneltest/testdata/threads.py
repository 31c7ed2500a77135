# SPDX-License-Identifier: Apache-2.0
# A thread with a name of its own for each connection. Logs
# "PID PEERPORT PID" of each: the process accepts and closes.
import os, socketserver, sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        with open("/proc/thread-self/comm", "w") as comm:
            comm.write("handler")
        os.write(1, b"%d %d %d\n" % (os.getpid(), self.client_address[1], os.getpid()))
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nok")


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
