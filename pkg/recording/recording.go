// SPDX-License-Identifier: Apache-2.0

// Package recording keeps the event stream on disk and gives it back: the same
// events in the same order, so that a replay prints what the live run printed.
//
// A file is a sequence of blocks (see package block) of JSON lines.
package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/stated-tcp/stated/pkg/block"
	"github.com/stated-tcp/stated/pkg/event"
)

// Header is the first line of a recording: where and when it was made.
type Header struct {
	Event   string `json:"event.name"` // always stated.recording
	Schema  string `json:"schema"`
	RunID   string `json:"stated.run.id"`
	BootID  string `json:"stated.boot.id,omitempty"`
	Host    string `json:"host.name,omitempty"`
	HostID  string `json:"host.id,omitempty"`
	Version string `json:"service.version,omitempty"`
	Kernel  string `json:"os.version,omitempty"`
	// NoDestroy, NoResets and SeesTimeWait are what the kernel side could see
	// (lifecycle.Options), without which a replay would conclude otherwise.
	NoDestroy bool `json:"stated.no_destroy,omitempty"`
	NoResets  bool `json:"stated.no_resets,omitempty"`

	SeesTimeWait bool `json:"stated.sees_time_wait,omitempty"`

	// Filter is which connections were wanted, filter.Filter as JSON: of others the
	// recording has what the kernel side could not tell from these. Absent: all.
	Filter json.RawMessage `json:"stated.filter,omitempty"`
}

const (
	headerEvent  = "stated.recording"
	headerSchema = "stated/1"
	blockEvents  = 1000
	blockBytes   = 256 << 10
)

// Writer appends events to a recording. It is not safe for concurrent use.
type Writer struct {
	w      io.Writer
	file   *os.File // when made by Create
	enc    *block.Encoder
	plain  []byte
	out    []byte
	first  uint64
	count  uint32
	failed error
}

// NewWriter begins a recording on w, which Close does not close.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	enc, err := block.NewEncoder()
	if err != nil {
		return nil, err
	}
	h.Event, h.Schema = headerEvent, headerSchema
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode the header: %w", err)
	}
	rec := &Writer{w: w, enc: enc, plain: append(text, '\n'), count: 1}
	return rec, rec.Flush()
}

// Create begins a recording in a new file that only its owner may read: it has
// the addresses and process names of the host. An existing file is an error.
func Create(path string, h Header) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("create the recording %s: it exists already; remove it or choose another name", path)
	}
	if err != nil {
		return nil, fmt.Errorf("create the recording: %w", err)
	}
	w, err := NewWriter(f, h)
	if err != nil {
		f.Close()
		return nil, err
	}
	w.file = f
	return w, nil
}

// Append adds an event. It is on disk when its block ends: after 1,000 events,
// 256 KiB, or a Flush. A failed write is returned now and ever after.
func (w *Writer) Append(e *event.Event) error {
	if w.failed != nil {
		return w.failed
	}
	w.plain = appendEvent(w.plain, e)
	w.count++
	if w.count >= blockEvents || len(w.plain) >= blockBytes {
		return w.Flush()
	}
	return nil
}

// Flush ends the block.
func (w *Writer) Flush() error {
	if w.failed != nil || w.count == 0 {
		return w.failed
	}
	w.out = w.enc.Append(w.out[:0], block.Header{First: w.first, Count: w.count}, w.plain)
	if _, err := w.w.Write(w.out); err != nil {
		w.failed = fmt.Errorf("write the recording: %w", err)
		return w.failed
	}
	w.first += uint64(w.count)
	w.plain, w.count = w.plain[:0], 0
	return nil
}

// Close ends the last block, and syncs and closes the file of Create. A write that
// failed is not told again.
func (w *Writer) Close() error {
	told := w.failed
	err := w.Flush()
	if told != nil {
		err = nil
	}
	if w.file == nil {
		return err
	}
	if syncErr := w.file.Sync(); syncErr != nil {
		err = errors.Join(err, fmt.Errorf("sync the recording: %w", syncErr))
	}
	return errors.Join(err, w.file.Close())
}

// Damage is what a Reader had to leave out.
type Damage struct {
	block.Damage
	LostEvents uint64 // events that were in what was left out, as far as the sequence tells
}

// errNoRecording says that the stream does not begin with a header.
var errNoRecording = errors.New("not a stated recording")

// Reader gives the events of a recording back. It is not safe for concurrent use.
type Reader struct {
	blocks *block.Reader
	header Header
	lines  []byte
	next   uint64 // sequence number expected of the next block
	lost   uint64
}

// NewReader reads the header of a recording.
func NewReader(r io.Reader) (*Reader, error) {
	blocks, err := block.NewReader(r)
	if err != nil {
		return nil, err
	}
	b, lines, err := blocks.Next()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the recording: %w", err)
	}
	rec := &Reader{blocks: blocks}
	first, rest, ok := bytes.Cut(lines, []byte{'\n'})
	if err != nil || b.First != 0 || !ok || json.Unmarshal(first, &rec.header) != nil || rec.header.Event != headerEvent {
		return nil, errNoRecording
	}
	if rec.header.Schema != headerSchema {
		return nil, fmt.Errorf("the recording has schema %q, this stated reads %q: use the stated that made it (%q)",
			rec.header.Schema, headerSchema, rec.header.Version)
	}
	rec.lines, rec.next = rest, b.End()
	return rec, nil
}

// Header returns where and when the recording was made.
func (r *Reader) Header() Header { return r.header }

// Damage returns what had to be left out so far.
func (r *Reader) Damage() Damage { return Damage{r.blocks.Damage(), r.lost} }

// Read stores the next event in e, io.EOF at the end. Events missing in the
// middle are told by a KindLost event in their place.
func (r *Reader) Read(e *event.Event) error {
	for len(r.lines) == 0 {
		b, lines, err := r.blocks.Next()
		if err != nil {
			return err
		}
		missing := b.First - r.next
		r.lines, r.next = lines, b.End()
		if missing > 0 && missing < 1<<40 {
			r.lost += missing
			*e = event.Event{Kind: event.KindLost, Count: missing}
			return nil
		}
	}
	text, rest, _ := bytes.Cut(r.lines, []byte{'\n'})
	r.lines = rest
	return parseEvent(text, e)
}
