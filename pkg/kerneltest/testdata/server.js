// SPDX-License-Identifier: Apache-2.0
// Logs "PID PEERPORT" of each connection that it accepted.
const net = require('net');
net.createServer((c) => {
  process.stdout.write(`${process.pid} ${c.remotePort}\n`);
  c.on('error', () => {});
  c.once('data', () => c.end('HTTP/1.0 200 OK\r\n\r\nok'));
}).listen(Number(process.argv[3]), process.argv[2]);
