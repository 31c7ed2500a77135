// SPDX-License-Identifier: Apache-2.0
// Leaks three connections in one way, says who must hold them, and ends with
// its standard input.
'use strict';
const net = require('net');
const COUNT = 3;
const keep = [];

// serve calls handle with each of our ends; peers say bye and close.
function serve(options, handle) {
  const server = net.createServer(options, handle);
  server.listen(0, '127.0.0.1', () => {
    for (let i = 0; i < COUNT; i++) {
      const c = net.connect(server.address().port, '127.0.0.1', () => c.end('bye'));
      c.on('error', () => {});
    }
  });
  return server;
}

function report(sockets) {
  if (sockets.length === COUNT) {
    console.log(JSON.stringify(sockets.map((s) => [process.pid, [s._handle.fd]])));
  }
}

const ways = {
  // the end is read; end() is never called
  drained() {
    serve({ allowHalfOpen: true }, (s) => {
      s.on('data', () => {});
      s.on('end', () => { keep.push(s); report(keep); });
    });
  },
  // never resumed
  data_unread() {
    serve({ pauseOnConnect: true }, (s) => { keep.push(s); report(keep); });
  },
  correct() {
    const server = net.createServer((s) => s.pipe(s));
    server.listen(0, '127.0.0.1', () => {
      setInterval(() => {
        const c = net.connect(server.address().port, '127.0.0.1', () => c.end('ping'));
        c.resume();
      }, 20);
      console.log('[]');
    });
  },
};

ways[process.argv[2]]();
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
