// SPDX-License-Identifier: Apache-2.0

package story

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/render"
)

// queue tells of a connection that nobody has accepted.
func (t *Teller) queue(s *census.Socket) []byte {
	b := []byte("No process has accepted it. ")
	for _, l := range s.Listeners {
		b = render.AppendAddr(append(b, "It waits in the queue of the listener "...), l.Local)
		b = t.queueOf(append(b, ", which"...), l)
		if full(l) {
			b = append(b, meansFull...)
		}
	}
	return b
}

// queueOf says how long the queue of a listener is, and whose.
func (t *Teller) queueOf(b []byte, l *census.Socket) []byte {
	waiting, limit := l.Queue()
	b = strconv.AppendInt(append(b, " has "...), waiting, 10)
	b = strconv.AppendInt(append(b, " of at most "...), limit, 10)
	for i := range l.Holders {
		if i == 0 {
			b = append(b, " and belongs to "...)
		} else {
			b = append(b, ", "...)
		}
		b = t.who(append(render.AppendTask(b, &l.Holders[i].Task), ": "...), l.Holders[i].Task)
	}
	return append(b, ". "...)
}

// full reports whether the queue of a listener takes no more.
func full(l *census.Socket) bool {
	waiting, limit := l.Queue()
	return waiting >= limit
}

// meansFull is what a full queue means (tcp_conn_request, tcp_v4_syn_recv_sock and tcp_check_req in net/ipv4).
const meansFull = "The queue is full: until the process calls accept(), the kernel drops new SYNs, and clients send them again from SYN_SENT. Handshakes under way stay in SYN_RECV, or are reset with net.ipv4.tcp_abort_on_overflow. "

func (t *Teller) listener(s *census.Socket) []byte {
	waiting, limit := s.Queue()
	b := []byte("It listens. ")
	switch addr := s.Local.Addr(); {
	case addr == netip.IPv4Unspecified():
		b = []byte("It listens on every IPv4 address. ")
	case addr == netip.IPv6Unspecified():
		b = []byte("It listens on every IPv6 address and, without IPV6_V6ONLY, every IPv4 one. ")
	}
	b = append(many(b, int(waiting), " connection waits", " connections wait"), " in its queue, "...)
	b = append(strconv.AppendInt(b, limit, 10), " may. "...)
	if full(s) {
		b = append(append(b, meansFull...), "The process accepts too slowly, or not at all. "...)
	}
	if s.Requests == 0 {
		return b
	}
	b = many(b, s.Requests, " connection is half-open", " connections are half-open")
	// inet_csk_reqsk_queue_is_full in include/net/inet_connection_sock.h; newer kernels let in one more.
	if backlog := limit - 1; int64(s.Requests) >= backlog {
		b = strconv.AppendInt(append(b, ", which uses up its backlog of "...), backlog, 10)
		b = append(b, ": SYN cookies serve further SYNs, or these are dropped (net.ipv4.tcp_syncookies). It is a flood of SYNs, or the last packet of the handshake does not come through"...)
	}
	return append(b, ". "...)
}

// many adds a number and what there is of it.
func many(b []byte, n int, one, several string) []byte {
	b = strconv.AppendInt(b, int64(n), 10)
	if n == 1 {
		return append(b, one...)
	}
	return append(b, several...)
}

// halfOpen tells whose a connection will be that is only a request as yet.
func (t *Teller) halfOpen(s *census.Socket) []byte {
	b := []byte("It is half-open: no process has it before accept(); its listener ")
	owners := s.Owners()
	switch {
	case len(s.Listeners) == 0:
		return append(b, "was not found."...)
	case len(owners) == 0:
		return append(render.AppendAddr(append(b, "is on "...), s.Listeners[0].Local), ", and no process was found that holds that."...)
	case len(owners) > 1:
		b = append(b, "is that of one of "...)
	default:
		b = append(b, "is "...)
	}
	for i := range owners {
		if i > 0 {
			b = append(b, "; "...)
		}
		b = t.who(append(render.AppendTask(b, &owners[i]), ": "...), owners[i])
	}
	return append(b, '.')
}

// queue is what waits at one port of a process, and who else listens there.
type queue struct {
	port     uint16
	netns    uint32
	halfOpen bool
	count    int
	oldest   census.Age
	others   []event.Task
	own      map[*census.Socket]bool // its listeners
}

// queues lists what waits for a process to accept it, which it does not hold: of
// listeners that share a port by SO_REUSEPORT it is not known in whose queue.
func (t *Teller) queues(b []byte, pid uint32, sockets []*census.Socket) []byte {
	var list []*queue
	for _, s := range sockets {
		if !s.Listened() {
			continue
		}
		i := slices.IndexFunc(list, func(q *queue) bool {
			return q.port == s.Local.Port() && q.netns == s.Netns && q.halfOpen == s.HalfOpen()
		})
		if i < 0 {
			i = len(list)
			list = append(list, &queue{port: s.Local.Port(), netns: s.Netns, halfOpen: s.HalfOpen(), own: make(map[*census.Socket]bool)})
		}
		q := list[i]
		if q.count++; s.Age.Min > q.oldest.Min || q.count == 1 {
			q.oldest = s.Age
		}
		for _, l := range s.Listeners {
			if slices.ContainsFunc(l.Holders, func(h census.Holder) bool { return h.PID == pid }) {
				q.own[l] = true
				continue
			}
			for _, h := range l.Holders {
				if !slices.ContainsFunc(q.others, func(t event.Task) bool { return t.PID == h.PID }) {
					q.others = append(q.others, h.Task)
				}
			}
		}
	}
	if len(list) == 0 {
		return b
	}
	b = append(b, "In the queues of its listeners:\n"...)
	for _, q := range list {
		b = append(t.mark(q.append(b), q.netns), '\n')
	}
	return append(b, '\n')
}

func (q *queue) append(b []byte) []byte {
	b = strconv.AppendInt(append(b, "  "...), int64(q.count), 10)
	if q.halfOpen {
		b = append(b, " half-open"...)
	} else {
		b = append(b, " unaccepted"...)
	}
	b = strconv.AppendUint(append(b, " at port "...), uint64(q.port), 10)
	if q.oldest.Min > 0 {
		b = render.AppendAge(append(b, ", oldest "...), q.oldest)
	}
	for i := range q.others {
		if i == 0 {
			b = append(b, ", shared with "...)
		} else {
			b = append(b, ", "...)
		}
		b = render.AppendTask(b, &q.others[i])
	}
	if len(q.others) > 0 && !q.halfOpen {
		own := int64(0)
		for l := range q.own {
			waiting, _ := l.Queue()
			own += waiting
		}
		b = strconv.AppendInt(append(b, ": its own queue has "...), own, 10)
	}
	return b
}
