# SPDX-License-Identifier: Apache-2.0
# A thread for each connection. Logs "PID PEERPORT" of each that it accepted.
import os, socketserver, sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        os.write(1, b"%d %d\n" % (os.getpid(), self.client_address[1]))
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nok")


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
