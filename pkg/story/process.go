// SPDX-License-Identifier: Apache-2.0

package story

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/stated-tcp/stated/pkg/census"
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/leak"
	"github.com/stated-tcp/stated/pkg/lifecycle"
	"github.com/stated-tcp/stated/pkg/render"
)

// Of reports whether a process has to do with a socket: it holds it, or the
// listener in whose queue it waits.
func Of(s *census.Socket, pid uint32) bool {
	holds := func(s *census.Socket) bool {
		return slices.ContainsFunc(s.Holders, func(h census.Holder) bool { return h.PID == pid })
	}
	return holds(s) || s.Listened() && slices.ContainsFunc(s.Listeners, holds)
}

// service is sockets of one state and purpose.
type service struct {
	state  event.State
	role   lifecycle.Role
	queued bool // nobody has accepted it
	netns  uint32
	addr   string // port we listen on, address we call
	mptcp  bool
	count  int
	oldest census.Age
}

// Process adds the story of one process and its sockets, which are changed in
// order; the full stories of at most examples of them follow.
func (t *Teller) Process(b []byte, task event.Task, sockets []*census.Socket, examples int) []byte {
	b = append(render.AppendTask(b, &task), '\n', '\n')
	text := append(t.who(nil, task), ". "...)
	if task.Start != 0 {
		text = append(render.AppendDuration(append(text, "It began "...), t.Now-task.Start), " ago. "...)
	}
	if p := t.Processes(task); p.FDLimit > 0 {
		text = append(render.AppendGrouped(append(text, "It uses "...), p.FDs), " of "...)
		text = append(render.AppendGrouped(text, p.FDLimit), " descriptors"...)
		if p.FDs*10 >= p.FDLimit*9 {
			text = append(text, ": hardly any is left, then accept(), socket() and open() fail with EMFILE"...)
		}
		text = append(text, ". "...)
	}
	b = paragraph(b, text)
	if p := t.Processes(task); p.Halted != "" {
		b = paragraph(b, append(render.AppendHalt(nil, &task, &p), '.'))
	}
	if len(sockets) == 0 {
		return paragraph(b, []byte("It holds no TCP socket."))
	}
	held := slices.DeleteFunc(slices.Clone(sockets), (*census.Socket).Listened)
	b = t.services(b, held)
	b = t.queues(b, task.PID, sockets)
	stuck, troubled := t.sort(sockets)
	if stuck == 0 {
		b = paragraph(b, t.calm(sockets))
	} else {
		b = paragraph(b, t.stuck(sockets[:stuck]))
	}
	if troubled > 0 {
		more := ""
		if stuck > 0 {
			more = " more"
		}
		text := many(nil, troubled, more+" is", more+" are")
		b = paragraph(b, append(text, " in trouble: data does not get through, or is not read."...))
	}
	notable := sockets[:min(stuck+troubled, examples)]
	for _, s := range notable {
		b = t.Socket(b, s)
	}
	if more := stuck + troubled - len(notable); more > 0 {
		text := many([]byte("And "), more, " more that is stuck", " more that are stuck")
		if troubled > 0 {
			text = append(text, " or in trouble"...)
		}
		text = strconv.AppendInt(append(text, ": --examples "...), int64(stuck+troubled), 10)
		b = paragraph(b, append(text, " tells of each."...))
	}
	return b
}

// Sockets adds the stories of sockets that were asked for by an address: the
// stuck and the oldest first, at most examples in full.
func (t *Teller) Sockets(b []byte, sockets []*census.Socket, examples int) []byte {
	if len(sockets) > 1 {
		b = t.services(b, sockets)
		t.sort(sockets)
	}
	for _, s := range sockets[:min(len(sockets), examples)] {
		b = t.Socket(b, s)
	}
	if more := len(sockets) - examples; more > 0 {
		b = paragraph(b, many([]byte("And "), more, " more: stated ls shows it.", " more: stated ls shows each."))
	}
	return b
}

// sort puts what is stuck first, then what is in trouble, then what is old, at last
// subflows, and returns how many are stuck, and how many others in trouble.
func (t *Teller) sort(sockets []*census.Socket) (stuck, troubled int) {
	ranks := make(map[*census.Socket]int, len(sockets))
	for _, s := range sockets {
		switch {
		case t.Stuck(s):
			ranks[s] = -2
			stuck++
		case len(t.troubles(nil, s)) > 0:
			ranks[s] = -1
			troubled++
		case s.Subflow():
			ranks[s] = 1
		}
	}
	slices.SortStableFunc(sockets, func(a, b *census.Socket) int {
		return cmp.Or(ranks[a]-ranks[b], cmp.Compare(b.Age.Min, a.Age.Min), cmp.Compare(a.Inode, b.Inode))
	})
	return stuck, troubled
}

// services lists how many sockets there are, by state and service.
func (t *Teller) services(b []byte, sockets []*census.Socket) []byte {
	index := make(map[service]int)
	var list []service
	subflows := 0
	for _, s := range sockets {
		if s.Subflow() {
			subflows++ // of a connection that counts
			continue
		}
		key := service{state: s.New, role: s.Role, queued: s.NotAccepted(), netns: s.Netns, mptcp: s.Multipath()}
		switch {
		case s.New == event.StateClose && !s.Hidden():
		case s.New == event.StateListen:
			key.addr = string(render.AppendAddr(nil, s.Local))
		case s.Role == lifecycle.RoleServer:
			key.addr = strconv.Itoa(int(s.Local.Port()))
		default:
			key.addr = string(render.AppendAddr(nil, s.Peer))
		}
		i, ok := index[key]
		if !ok {
			i = len(list)
			index[key] = i
			list = append(list, key)
		}
		if list[i].count++; s.Age.Min > list[i].oldest.Min || list[i].count == 1 {
			list[i].oldest = s.Age
		}
	}
	slices.SortStableFunc(list, func(a, b service) int { return cmp.Compare(b.count, a.count) })
	if subflows < len(sockets) {
		b = many(b, len(sockets)-subflows, " TCP socket", " TCP sockets")
	}
	if subflows > 0 {
		if subflows < len(sockets) {
			b = append(b, ", and "...)
		}
		b = many(b, subflows, " subflow of MPTCP connections", " subflows of MPTCP connections")
	}
	if subflows == len(sockets) {
		return append(b, ".\n\n"...)
	}
	b = append(b, ":\n"...)
	const most = 20
	for i := range list[:min(len(list), most)] {
		b = t.service(b, &list[i])
	}
	if more := len(list) - most; more > 0 {
		b = many(append(b, "  and of "...), more, " more kind\n", " more kinds\n")
	}
	return append(b, '\n')
}

func (t *Teller) service(b []byte, s *service) []byte {
	b = append(strconv.AppendInt(append(b, "  "...), int64(s.count), 10), ' ')
	switch {
	case s.state == event.StateClose && s.addr == "":
		return append(b, "not connected\n"...)
	case s.state == event.StateClose:
		b = append(b, "ended but not closed"...)
	default:
		b = append(b, s.state.Name(t.Names)...)
	}
	if s.mptcp {
		b = append(b, " (MPTCP)"...)
	}
	if s.queued {
		b = append(b, ", not accepted"...)
	}
	switch {
	case s.state == event.StateListen:
		return append(t.mark(append(append(b, " on "...), s.addr...), s.netns), '\n')
	case s.role == lifecycle.RoleServer:
		b = append(append(b, ", came in at port "...), s.addr...)
	case s.role == lifecycle.RoleUnknown:
		b = append(append(b, ", with "...), s.addr...)
	default:
		b = append(append(b, ", called "...), s.addr...)
	}
	return append(t.mark(render.AppendAge(append(b, ", oldest "...), s.oldest), s.netns), '\n')
}

// calm says that none is stuck, as far as is known.
func (t *Teller) calm(sockets []*census.Socket) []byte {
	doubtful := 0
	for _, s := range sockets {
		if t.doubtful(s) {
			doubtful++
		}
	}
	if doubtful == 0 {
		return []byte("None of them is stuck.")
	}
	b := many([]byte("None of them is known to be stuck. Of "), doubtful, " it is not known whether it has been in its state for ", " it is not known whether they have been in their state for ")
	b = render.AppendDuration(b, t.MinAge)
	return append(b, ": look again, or watch with stated leaks --for."...)
}

// stuck says how many are, and why.
func (t *Teller) stuck(sockets []*census.Socket) []byte {
	var verdicts [leak.NumVerdicts]int
	unknown := ""
	for _, s := range sockets {
		f := leak.Judge(s)
		verdicts[f.Verdict]++
		unknown = cmp.Or(unknown, f.Why)
	}
	b := many(nil, len(sockets), " is stuck for ", " are stuck for ")
	b = append(render.AppendDuration(b, t.MinAge), " or longer. "...)
	for v, n := range verdicts {
		if n == 0 {
			continue
		}
		b = append(strconv.AppendInt(b, int64(n), 10), ' ')
		b = append(b, leak.Verdict(v).String()...)
		why := render.Meaning(leak.Verdict(v))
		if leak.Verdict(v) == leak.Unknown {
			why = unknown
		}
		if why != "" {
			b = append(append(b, ": "...), why...)
		}
		b = append(b, ". "...)
	}
	return b
}
