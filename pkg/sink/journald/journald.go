// SPDX-License-Identifier: Apache-2.0

// Package journald writes records into the systemd journal by its native
// protocol (systemd, docs/JOURNAL_NATIVE_PROTOCOL.md). A record's fields are
// STATED_..., next to MESSAGE, PRIORITY and MESSAGE_ID.
//
// That journald's socket took a datagram is all the acknowledgement there is.
// It drops messages over its rate limit (journald.conf, RateLimitBurst) without
// telling: a unit that sends many wants LogRateLimitIntervalSec=0.
package journald

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/flat"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

// DefaultEvents are the records that belong into a journal: what was found, not
// each change of state.
var DefaultEvents = []string{"tcp.connection", "tcp.leak", "stated.gap"}

// Config says where the journal is.
type Config struct {
	// Socket is the path of journald's native socket;
	// /run/systemd/journal/socket unless set.
	Socket string `yaml:"socket"`
	// Identifier is SYSLOG_IDENTIFIER, by which journalctl -t selects; stated
	// unless set.
	Identifier string `yaml:"identifier"`
}

// messageIDs name the kinds of records (journalctl MESSAGE_ID=...).
var messageIDs = map[string]string{
	"tcp.state_change": "5b0f1f6c2f0a4c7fa1b6f1d7b0a3c901",
	"tcp.connection":   "5b0f1f6c2f0a4c7fa1b6f1d7b0a3c902",
	"tcp.leak":         "5b0f1f6c2f0a4c7fa1b6f1d7b0a3c903",
	"stated.gap":       "5b0f1f6c2f0a4c7fa1b6f1d7b0a3c904",
}

// Sink is a sink.Sink.
type Sink struct {
	cfg    Config
	conn   *net.UnixConn
	closed bool
	entry  []byte
	text   []byte // for unescaping; a longer string is allotted
}

// New checks cfg. It does not connect: journald may be down.
func New(cfg Config) (*Sink, error) {
	if cfg.Socket == "" {
		cfg.Socket = "/run/systemd/journal/socket"
	}
	if !filepath.IsAbs(cfg.Socket) {
		return nil, fmt.Errorf("journald: socket %q: want an absolute path", cfg.Socket)
	}
	if cfg.Identifier == "" {
		cfg.Identifier = "stated"
	}
	return &Sink{cfg: cfg, text: make([]byte, 0, 1<<10)}, nil
}

// Send implements sink.Sink.
func (s *Sink) Send(ctx context.Context, batch []sink.Record) error {
	if s.closed {
		return net.ErrClosed
	}
	rejected := &sink.Rejected{}
	for i := range batch {
		if err := s.encode(&batch[i]); err != nil {
			rejected.Indexes, rejected.Err = append(rejected.Indexes, i), fmt.Errorf("journald: %w", err)
			continue
		}
		if err := s.write(ctx); err != nil {
			return fmt.Errorf("journald: %w", err)
		}
	}
	if len(rejected.Indexes) > 0 {
		return rejected
	}
	return nil
}

// encode makes the entry of r.
func (s *Sink) encode(r *sink.Record) error {
	b := appendField(s.entry[:0], "SYSLOG_IDENTIFIER", []byte(s.cfg.Identifier))
	b = appendField(b, "PRIORITY", strconv.AppendInt(nil, int64(priority(r.Severity)), 10))
	if id, ok := messageIDs[r.Event]; ok {
		b = appendField(b, "MESSAGE_ID", []byte(id))
	}
	message := false
	in := flat.Scan(r.Line)
	for in.Next() {
		if in.Value.Kind == flat.Null {
			continue
		}
		value := in.Value.Text(s.text)
		if string(in.Key) == "message" {
			message = true
			b = appendField(b, "MESSAGE", value)
			continue
		}
		var name [64]byte // journald, journal-file-util: no longer ones
		b = appendField(b, string(appendName(name[:0], in.Key)), value)
	}
	if !message {
		b = appendField(b, "MESSAGE", []byte(r.Event))
	}
	s.entry = b
	return in.Err()
}

// priority maps OpenTelemetry's severity number to syslog(3)'s.
func priority(otel int) int {
	switch {
	case otel >= 21:
		return 2
	case otel >= 17:
		return 3
	case otel >= 13:
		return 4
	case otel >= 9 || otel <= 0:
		return 6
	}
	return 7
}

// appendName adds STATED_ and the key in upper case, without its own stated.;
// a field's name has A-Z, 0-9 and _ only, at most 64.
func appendName(dst, key []byte) []byte {
	dst = append(dst, "STATED_"...)
	for _, c := range bytes.TrimPrefix(key, []byte("stated.")) {
		switch {
		case len(dst) == 64:
			return dst
		case c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
		case c >= 'A' && c <= 'Z' || c >= '0' && c <= '9':
		default:
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// appendField adds NAME=value, or where the value has a line's end, the name
// and the value's length before it.
func appendField(dst []byte, name string, value []byte) []byte {
	dst = append(dst, name...)
	if bytes.IndexByte(value, '\n') < 0 {
		dst = append(dst, '=')
	} else {
		dst = binary.LittleEndian.AppendUint64(append(dst, '\n'), uint64(len(value)))
	}
	return append(append(dst, value...), '\n')
}

// write sends the entry, a second time over a new socket: journald may have
// been restarted.
func (s *Sink) write(ctx context.Context) error {
	for fresh := s.conn == nil; ; fresh = true {
		if s.conn == nil {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unixgram", s.cfg.Socket)
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			s.conn = conn.(*net.UnixConn)
			s.conn.SetWriteBuffer(8 << 20) // as sd_journal_send does; less than wanted is no harm
		}
		err := s.writeOnce(ctx)
		if err == nil {
			return nil
		}
		s.drop()
		if fresh || ctx.Err() != nil {
			return err
		}
	}
}

func (s *Sink) writeOnce(ctx context.Context) error {
	defer transport.Guard(ctx, s.conn.SetWriteDeadline)()
	_, err := s.conn.Write(s.entry)
	// Over the buffer's size: EMSGSIZE; over what the kernel can allot in one
	// piece: ENOBUFS (net/unix/af_unix.c, unix_dgram_sendmsg).
	if errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.ENOBUFS) {
		err = s.writeFile()
	}
	return transport.Cause(ctx, err)
}

// writeFile passes the entry in a sealed memfd, which journald reads whole.
func (s *Sink) writeFile() error {
	fd, err := unix.MemfdCreate("stated-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("make a memory file for a large record: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stated-entry")
	defer f.Close()
	if _, err := f.Write(s.entry); err != nil {
		return fmt.Errorf("write a large record to memory: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal a large record: %w", err)
	}
	raw, err := s.conn.SyscallConn() // WriteMsgUnix refuses connected sockets
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(socket uintptr) bool {
		sendErr = unix.Sendmsg(int(socket), nil, unix.UnixRights(fd), nil, 0)
		return sendErr != unix.EAGAIN
	})
	return errors.Join(err, sendErr)
}

func (s *Sink) drop() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// Close closes the socket. It may be called again.
func (s *Sink) Close() error {
	s.closed = true
	s.drop()
	return nil
}
