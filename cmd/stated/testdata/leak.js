// SPDX-License-Identifier: Apache-2.0

// Opens connections at two places, and keeps its ends: the other side closes.
// By the binding below net.connect(), which itself calls connect() in the next
// tick, when its caller has returned.
const net = require("net"), fs = require("fs");
const {TCP, TCPConnectWrap, constants} = process.binding("tcp_wrap");
process.on("exit", () => { try { fs.unlinkSync(`/tmp/perf-${process.pid}.map`); } catch {} });
const kept = [];
let at;
function openInPool(done) {
	const c = new TCP(constants.SOCKET), r = new TCPConnectWrap();
	kept.push(c);
	r.oncomplete = done;
	return c.connect(r, "127.0.0.1", at);
}
function openForReport(done) {
	const c = new TCP(constants.SOCKET), r = new TCPConnectWrap();
	kept.push(c);
	r.oncomplete = done;
	return c.connect(r, "127.0.0.1", at);
}
let closed = 0;
const server = net.createServer(s => s.destroy().on("close", () => { if (++closed == 5) console.log("leaked"); }));
server.listen(0, "127.0.0.1", () => {
	at = server.address().port;
	console.log("ready");
	process.stdin.once("data", () => { // now we are watched
		const todo = [openInPool, openInPool, openInPool, openForReport, openForReport];
		const next = () => { if (todo.length) todo.shift()(next); };
		next();
		process.stdin.on("end", () => process.exit());
	});
});
