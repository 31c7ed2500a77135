// SPDX-License-Identifier: Apache-2.0

package render

import (
	"hash/fnv"
	"slices"
	"strconv"

	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
)

// maxExamples is how many sockets a record names: the schema's bound.
const maxExamples = 5

// jsonLeak writes a group as one tcp.leak record. With Each, it is about one
// socket, and says everything of it.
func (r *Writer) jsonLeak(l *Leaks, g *leak.Group) {
	oldest := g.Oldest()
	p := l.parties(g)
	owners := p.owners
	r.begin("tcp.leak", "WARN", l.Now)
	b := text(r.buf, "network.transport", "tcp")
	if len(owners) > 0 && !p.mixed {
		p := l.Processes(owners[0])
		b = text(b, "stated.process.source", ownerSource(oldest.Socket).String())
		b = process(b, "process.", &owners[0])
		b = r.jsonProcess(b, owners[0].PID, &p)
		if p.FDLimit > 0 {
			b = number(b, "stated.leak.fd.used", int64(p.FDs))
			b = number(b, "stated.leak.fd.limit", int64(p.FDLimit))
		}
		if left, ok := l.Exhaustion(g, p); ok {
			b = number(b, "stated.leak.fd.exhaustion_ns", left)
		}
	}
	b = append(key(b, "stated.leak.id"), '"')
	switch l.By {
	case ByContainer:
		b = appendHex(b, commonID(&r.opts.Host, "container", g.Key))
	case ByListener:
		b = appendHex(b, commonID(&r.opts.Host, "listener", g.Key))
	case ByPeer:
		b = appendHex(b, commonID(&r.opts.Host, "peer", g.Key))
	default:
		b = appendHex(b, leakID(&r.opts.Host, oldest.Owners(), oldest))
	}
	b = append(b, '"')
	if l.Each {
		b = r.jsonSocket(b, l, oldest)
	} else {
		b = r.jsonGroup(b, l, g, &p)
	}
	worst := worstVerdict(g)
	b = text(b, "stated.leak.verdict", worst.String())
	if worst == leak.Unknown {
		b = text(b, "stated.leak.unknown_why", oldest.Why)
	}
	if l.Stacks {
		b = jsonOrigin(b, g)
	}
	b = number(b, "stated.leak.oldest_age_ns", oldest.Age.Min)
	b = text(b, "stated.leak.age_known", oldest.Age.Known.String())
	m := r.appendHeadline(nil, l, g, &p)
	r.buf = quote(key(b, "message"), m)
	r.end()
}

// leakID names a leak across reports and restarts: the host, the program, the
// state, and the service.
func leakID(h *Host, owners []event.Task, f *leak.Finding) uint64 {
	hash := fnv.New64a()
	put := func(s string) {
		hash.Write([]byte(s))
		hash.Write([]byte{0})
	}
	put(h.ID)
	for _, t := range owners {
		put(t.Comm.String())
	}
	put(f.New.String())
	role, service := f.Service()
	put(role.String())
	if role == lifecycle.RoleServer {
		put(strconv.Itoa(int(service.Port())))
	} else {
		put(service.String())
	}
	return hash.Sum64()
}

// jsonService adds what the connections of a group are for.
func jsonService(b []byte, f *leak.Finding) []byte {
	role, service := f.Service()
	b = text(b, "stated.leak.opened_by", role.String())
	if role == lifecycle.RoleServer {
		return number(b, "network.local.port", int64(service.Port()))
	}
	return end(b, "network.peer", service)
}

func worstVerdict(g *leak.Group) leak.Verdict {
	worst := leak.Unknown
	for v, n := range g.Verdicts {
		if n > g.Verdicts[worst] {
			worst = leak.Verdict(v)
		}
	}
	return worst
}

// jsonGroup adds the counts of a group and examples of its sockets.
func (r *Writer) jsonGroup(b []byte, l *Leaks, g *leak.Group, p *parties) []byte {
	b = number(b, "stated.leak.sockets", int64(len(g.Findings)))
	if n := g.States[g.Oldest().New]; n == len(g.Findings) {
		b = text(b, "network.connection.state", g.Oldest().New.Name(event.NamingOTel))
	}
	for s, n := range g.States {
		if n > 0 {
			b = number(b, "stated.leak.sockets_by_state."+event.State(s).Name(event.NamingOTel), int64(n))
		}
	}
	for v, n := range g.Verdicts {
		if n > 0 {
			b = number(b, "stated.leak.sockets_by_verdict."+leak.Verdict(v).String(), int64(n))
		}
	}
	if slices.ContainsFunc(g.Findings, func(f leak.Finding) bool { return f.Queued() }) {
		b = number(b, "stated.leak.unread_bytes", int64(g.Unread))
	}
	if !slices.ContainsFunc(g.Findings, func(f leak.Finding) bool { return !f.Multipath() }) {
		b = jsonMultipath(b, g.Oldest().Socket)
	}
	if g.Kernel() {
		b = append(b, `,"stated.socket.kernel":true`...)
	}
	if l.By == ByContainer {
		b = appendString(key(b, "stated.leak.container"), []byte(g.Key))
	}
	if sameService(g) {
		b = jsonService(b, g.Oldest())
	}
	if rate, ok := l.Growth[g.Key]; ok {
		b = strconv.AppendFloat(key(b, "stated.leak.growth_per_hour"), rate*3600, 'f', 1, 64)
	}
	if f := p.flow; f.In+f.Out > 0 {
		b = number(b, "stated.leak.close_wait.entered", int64(f.In))
		b = number(b, "stated.leak.close_wait.left", int64(f.Out))
	}
	if idle := g.CommonIdle(); idle != 0 {
		b = number(b, "stated.leak.idle_before_fin_ns", idle)
	}
	b = append(key(b, "stated.leak.examples"), '[')
	for i := range g.Findings[:min(len(g.Findings), maxExamples)] {
		f := &g.Findings[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"local":"`...)
		b = append(f.Local.AppendTo(b), `","peer":"`...)
		b = append(f.Peer.AppendTo(b), '"')
		b = number(b, "netns", int64(f.Netns))
		b = number(b, "age_ns", f.Age.Min)
		b = text(b, "verdict", f.Verdict.String())
		if owners := f.Owners(); len(f.Holders) > 0 || len(owners) == 1 {
			b = number(b, "pid", int64(owners[0].PID))
		}
		if len(f.Holders) > 0 {
			b = number(b, "fd", int64(f.Holders[0].FDs[0]))
			b = jsonWait(b, "wait", l.waitOn(f.Socket))
		}
		if n := len(f.Holders); n > 1 {
			b = number(b, "holders", int64(n))
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// jsonSocket adds everything that is known of one socket.
func (r *Writer) jsonSocket(b []byte, l *Leaks, f *leak.Finding) []byte {
	b = number(b, "stated.leak.sockets", 1)
	b = jsonWait(b, "stated.socket.wait", l.waitOn(f.Socket))
	b = text(b, "network.connection.state", f.New.Name(event.NamingOTel))
	b = socketFacts(b, f.Socket)
	if f.Queued() {
		b = number(b, "stated.leak.unread_bytes", int64(f.Unread))
	}
	if f.Idle != 0 {
		b = number(b, "stated.leak.idle_before_fin_ns", f.Idle)
	}
	return jsonHolders(b, "stated.leak.holders", f.Socket)
}
