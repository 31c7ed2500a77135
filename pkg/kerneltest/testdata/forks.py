# SPDX-License-Identifier: Apache-2.0
# A process for each connection, as inetd does it: the parent accepts, the
# child answers. Logs "PID PEERPORT" of the process that accepted.
import os, socketserver, sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nok")


class Server(socketserver.ForkingTCPServer):
    request_queue_size = 128

    def get_request(self):
        request, client = super().get_request()
        os.write(1, b"%d %d\n" % (os.getpid(), client[1]))
        return request, client


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
