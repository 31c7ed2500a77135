// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/stated-tcp/stated/pkg/event"
)

// full has every field set to something of its own, by reflection, so that a
// field that is added to Event and not to the codec fails the round trip.
func full(t testing.TB) event.Event {
	var e event.Event
	n := uint64(1)
	var fill func(v reflect.Value, name string)
	fill = func(v reflect.Value, name string) {
		n++
		switch {
		case v.Type() == reflect.TypeFor[netip.AddrPort]():
			v.Set(reflect.ValueOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), uint16(n))))
		case v.Type() == reflect.TypeFor[event.Comm]():
			v.Set(reflect.ValueOf(event.Comm{0xff, '"', '\\', '\n', 0x1b, 'a', byte(n)}))
		case v.Type() == reflect.TypeFor[event.Kind]():
			v.SetUint(uint64(event.KindAccept))
		case v.Type() == reflect.TypeFor[event.State]():
			v.SetUint(n % event.NumStates)
		case v.Kind() == reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), v.Type().Field(i).Name)
			}
		case v.Kind() == reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), name)
		case v.Kind() == reflect.String:
			v.SetString("/a\xff\"\\\n\x1b" + name)
		case v.Kind() == reflect.Bool:
			v.SetBool(true)
		case v.CanUint():
			v.SetUint(n)
		case v.CanInt():
			v.SetInt(int64(n))
		default:
			t.Fatalf("field %s has a type that this test does not know", name)
		}
		if v.IsZero() {
			t.Fatalf("field %s is still zero", name)
		}
	}
	fill(reflect.ValueOf(&e).Elem(), "Event")
	return e
}

func TestRoundTripOfEveryField(t *testing.T) {
	want := full(t)
	var got event.Event
	if err := parseEvent(appendEvent(nil, &want), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The text of the lines is what other tools read: it changes knowingly or not at all.
func TestLine(t *testing.T) {
	e := event.Event{
		Kind: event.KindState, Old: event.StateEstablished, New: event.StateCloseWait, Time: 12, Socket: 1 << 60,
		Local: netip.MustParseAddrPort("[2001:db8::1]:443"), Peer: netip.MustParseAddrPort("192.0.2.7:50112"),
		Task: event.Task{PID: 7, Comm: event.MakeComm("a\x1b[")},
	}
	const want = `{"kind":"state","time_ns":12,"socket":"1152921504606846976","old":1,"new":8,` +
		`"local":"[2001:db8::1]:443","peer":"192.0.2.7:50112","pid":7,"comm":"a\u001b["}` + "\n"
	if got := string(appendEvent(nil, &e)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func record(t testing.TB, blocks, perBlock int) []byte {
	var buf bytes.Buffer
	w, err := NewWriter(&buf, Header{RunID: "run"})
	if err != nil {
		t.Fatal(err)
	}
	for b := range blocks {
		for i := range perBlock {
			if err := w.Append(&event.Event{Kind: event.KindState, Time: int64(b*perBlock + i + 1), Old: 1, New: 8}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func readAll(r io.Reader) (times []int64, lost uint64, d Damage, err error) {
	rec, err := NewReader(r)
	if err != nil {
		return nil, 0, d, err
	}
	for {
		var e event.Event
		switch err := rec.Read(&e); {
		case errors.Is(err, io.EOF):
			return times, lost, rec.Damage(), nil
		case err != nil:
			return times, lost, rec.Damage(), err
		case e.Kind == event.KindLost:
			lost += e.Count
		default:
			times = append(times, e.Time)
		}
	}
}

func TestCutAnywhere(t *testing.T) {
	whole := record(t, 4, 5)
	all, _, d, err := readAll(bytes.NewReader(whole))
	if err != nil || len(all) != 20 || d != (Damage{}) {
		t.Fatalf("whole: %d events, %+v, %v", len(all), d, err)
	}
	for n := range whole {
		got, lost, d, err := readAll(bytes.NewReader(whole[:n]))
		if errors.Is(err, errNoRecording) && len(got) == 0 {
			continue // not even the header
		}
		if err != nil || lost != 0 {
			t.Fatalf("cut at %d: lost %d, %v", n, lost, err)
		}
		for i, time := range got {
			if time != int64(i+1) {
				t.Fatalf("cut at %d: event %d has time %d", n, i, time)
			}
		}
		if len(got)%5 != 0 {
			t.Fatalf("cut at %d: %d events, not whole blocks", n, len(got))
		}
		if d.BadBlocks != 0 || d.BadBytes != 0 {
			t.Fatalf("cut at %d: damage %+v in the middle", n, d)
		}
	}
}

func TestDamageInTheMiddle(t *testing.T) {
	whole := record(t, 4, 5)
	head := record(t, 0, 0)
	for n := len(head); n < len(whole); n++ {
		bad := bytes.Clone(whole)
		bad[n] ^= 0x40
		got, lost, d, err := readAll(bytes.NewReader(bad))
		if err != nil {
			t.Fatalf("flip at %d: %v", n, err)
		}
		if len(got) < 15 && d.TornBytes == 0 && d.BadBytes == 0 {
			t.Fatalf("flip at %d: %d events, damage %+v", n, len(got), d)
		}
		if d == (Damage{}) && lost == 0 {
			t.Fatalf("flip at %d: %d events, and no damage told", n, len(got))
		}
	}
}

func TestZstdReadsIt(t *testing.T) {
	dec, err := zstd.NewReader(bytes.NewReader(record(t, 3, 5)))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	text, err := io.ReadAll(dec)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 16 {
		t.Errorf("%d lines, want 16:\n%s", n, text)
	}
}

func TestCreateKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.rec")
	w, err := Create(path, Header{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, Header{}); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("second Create: %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestNoRecording(t *testing.T) {
	for _, text := range []string{"", "hello", strings.Repeat("x", 10000)} {
		if _, err := NewReader(strings.NewReader(text)); !errors.Is(err, errNoRecording) {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	whole := record(f, 2, 3)
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Fuzz(func(t *testing.T, data []byte) {
		readAll(bytes.NewReader(data)) // must end, and not panic
	})
}

func FuzzLine(f *testing.F) {
	e := full(f)
	f.Add(appendEvent(nil, &e))
	f.Add([]byte(`{"kind":"clock","wall_ns":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var a, b event.Event
		if parseEvent(data, &a) != nil {
			return
		}
		if err := parseEvent(appendEvent(nil, &a), &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%+v became %+v, %v", a, b, err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	w, err := NewWriter(io.Discard, Header{})
	if err != nil {
		b.Fatal(err)
	}
	e := full(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Append(&e); err != nil {
			b.Fatal(err)
		}
	}
}
