// SPDX-License-Identifier: Apache-2.0

// Opens connections at two places, and keeps its ends: the other side closes.
const net = require("net"), fs = require("fs");
process.on("exit", () => { try { fs.unlinkSync(`/tmp/perf-${process.pid}.map`); } catch {} });
const kept = [];
let at;
function connect(done) {
	const c = net.connect({port: at, host: "127.0.0.1", allowHalfOpen: true}, done);
	c.on("error", () => {});
	kept.push(c);
}
function openInPool(done) { connect(done); return 1; }
function openForReport(done) { connect(done); return 2; }
const server = net.createServer(s => s.end()).listen(0, "127.0.0.1", () => {
	at = server.address().port;
	process.stdin.once("data", () => { // now we are watched
		const todo = [openInPool, openInPool, openInPool, openForReport, openForReport];
		const next = () => todo.length ? todo.shift()(next) : console.log("leaked");
		next();
		process.stdin.on("end", () => process.exit());
	});
});
