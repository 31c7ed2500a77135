// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// relp is a client of the Reliable Event Logging Protocol (rsyslog's
// doc/relp.html in librelp): frames "TXNR COMMAND DATALEN[ DATA]\n", each
// answered with "rsp" and a code. Messages without an answer are sent again
// over the next connection, which may make duplicates, as RELP allows.
type relp struct {
	dialer *transport.Dialer
	window int

	conn  net.Conn
	in    *bufio.Reader
	out   []byte
	next  int             // the number of the next transaction
	wait  map[int]int     // transactions without an answer: index of the message
	taken map[string]bool // messages of the batch that failed last that were answered
}

const (
	maxTxnr   = 999_999_999
	maxAnswer = 128 << 10 // librelp's own limit of a frame
)

func (r *relp) send(ctx context.Context, batch *messages) ([]int, error) {
	left := make([]int, 0, batch.len())
	for i := range batch.len() {
		if !r.taken[batch.uids[i]] {
			left = append(left, i)
		}
	}
	for len(left) > 0 {
		kept, before := r.conn != nil, len(left)
		err := r.attempt(ctx, batch, &left)
		if err == nil {
			break
		}
		r.drop()
		// A connection kept from earlier may have ended meanwhile, and one
		// that brought something on may bring the rest.
		if ctx.Err() != nil || !kept && len(left) == before {
			r.remember(batch, left)
			return nil, err
		}
	}
	r.taken = nil
	return nil, nil
}

// remember keeps what was answered of a batch that will come again.
func (r *relp) remember(batch *messages, left []int) {
	r.taken = map[string]bool{}
	for i, uid := range batch.uids {
		if _, waits := slices.BinarySearch(left, i); !waits && uid != "" {
			r.taken[uid] = true
		}
	}
}

// attempt sends left over one connection and takes from it what was answered.
func (r *relp) attempt(ctx context.Context, batch *messages, left *[]int) error {
	if r.conn == nil {
		if err := r.open(ctx); err != nil {
			return err
		}
	}
	defer transport.Guard(ctx, r.conn.SetDeadline)()
	done := make(map[int]bool)
	defer func() {
		*left = slices.DeleteFunc(*left, func(i int) bool { return done[i] })
	}()
	todo := *left
	for len(todo) > 0 || len(r.wait) > 0 {
		r.out = r.out[:0]
		for len(todo) > 0 && len(r.wait) < r.window {
			r.wait[r.next] = todo[0]
			r.out = r.frame(r.out, "syslog", batch.at(todo[0]))
			todo = todo[1:]
		}
		if _, err := r.conn.Write(r.out); err != nil {
			return fmt.Errorf("write to %s: %w", r.dialer.Address, err)
		}
		for enough := r.window / 2; len(r.wait) > 0 && (len(r.wait) > enough || len(todo) == 0); {
			txnr, answer, err := r.answer()
			if err != nil {
				return err
			}
			i, ok := r.wait[txnr]
			if !ok {
				return fmt.Errorf("RELP: an answer to transaction %d, which is none", txnr)
			}
			// Anything else (500: an error) is the collector's trouble of the
			// moment, such as a full queue; RELP cannot say that it never will.
			if !bytes.HasPrefix(answer, []byte("200")) {
				return fmt.Errorf("RELP: the collector did not take a message: %.200q", answer)
			}
			delete(r.wait, txnr)
			done[i] = true
		}
	}
	return nil
}

func (r *relp) frame(dst []byte, command string, data []byte) []byte {
	dst = strconv.AppendInt(dst, int64(r.next), 10)
	dst = append(append(append(dst, ' '), command...), ' ')
	dst = strconv.AppendInt(dst, int64(len(data)), 10)
	if len(data) > 0 {
		dst = append(append(dst, ' '), data...)
	}
	if r.next++; r.next > maxTxnr {
		r.next = 1
	}
	return append(dst, '\n')
}

const offer = "relp_version=0\nrelp_software=stated\ncommands=syslog"

func (r *relp) open(ctx context.Context) error {
	conn, err := r.dialer.Dial(ctx)
	if err != nil {
		return err
	}
	r.conn, r.in, r.next, r.wait = conn, bufio.NewReader(conn), 1, map[int]int{}
	defer transport.Guard(ctx, conn.SetDeadline)()
	if _, err := conn.Write(r.frame(nil, "open", []byte(offer))); err != nil {
		return fmt.Errorf("RELP: open the session: %w", err)
	}
	_, answer, err := r.answer()
	if err != nil {
		return fmt.Errorf("RELP: open the session: %w", err)
	}
	if !bytes.HasPrefix(answer, []byte("200")) {
		return fmt.Errorf("RELP: the collector refused the session: %.200q", answer)
	}
	for line := range bytes.Lines(answer) {
		if list, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("commands=")); ok && !bytes.Contains(list, []byte("syslog")) {
			return fmt.Errorf("RELP: the collector takes no syslog messages, only %.200q", list)
		}
	}
	return nil
}

// answer reads one frame of the collector, which must be a rsp.
func (r *relp) answer() (txnr int, data []byte, err error) {
	if txnr, err = r.number(' '); err != nil {
		return 0, nil, err
	}
	command, err := r.word()
	if err != nil {
		return 0, nil, err
	}
	length, err := r.number(0)
	if err != nil {
		return 0, nil, err
	}
	if length > maxAnswer {
		return 0, nil, fmt.Errorf("RELP: an answer of %d bytes", length)
	}
	data = make([]byte, length+1)
	if _, err := io.ReadFull(r.in, data); err != nil {
		return 0, nil, fmt.Errorf("RELP: read the answer: %w", err)
	}
	if data[length] != '\n' {
		return 0, nil, errors.New("RELP: an answer does not end where it says")
	}
	switch command {
	case "rsp":
		return txnr, data[:length], nil
	case "serverclose":
		return 0, nil, errors.New("RELP: the collector closed the session")
	}
	return 0, nil, fmt.Errorf("RELP: the collector says %q where an answer belongs", command)
}

// number reads up to nine digits and what ends them: end, or for a length a
// space, or a line's end, which stays.
func (r *relp) number(end byte) (int, error) {
	n := 0
	for i := 0; ; i++ {
		c, err := r.in.ReadByte()
		switch {
		case err != nil:
			return 0, fmt.Errorf("RELP: read the answer: %w", err)
		case c >= '0' && c <= '9' && i < 9:
			n = n*10 + int(c-'0')
			continue
		case i > 0 && c == ' ':
			return n, nil
		case i > 0 && c == '\n' && end == 0:
			return n, r.in.UnreadByte()
		}
		return 0, fmt.Errorf("RELP: the collector speaks something else (%q where a number belongs)", c)
	}
}

func (r *relp) word() (string, error) {
	var w []byte
	for len(w) <= 32 {
		c, err := r.in.ReadByte()
		if err != nil {
			return "", fmt.Errorf("RELP: read the answer: %w", err)
		}
		if c == ' ' {
			return string(w), nil
		}
		w = append(w, c)
	}
	return "", fmt.Errorf("RELP: the collector speaks something else (%q)", w)
}

func (r *relp) drop() {
	if r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
}

// close ends the session and waits a second for the answer, without which
// nothing is lost.
func (r *relp) close() {
	if r.conn == nil {
		return
	}
	r.conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := r.conn.Write(r.frame(nil, "close", nil)); err == nil {
		r.answer()
	}
	r.drop()
}
