// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/stated-tcp/stated/pkg/event"
)

// TestWireContract: the records in the object's BTF are those that decode
// reads, without a hole.
func TestWireContract(t *testing.T) {
	for name, goType := range map[string]reflect.Type{"event": reflect.TypeFor[bpfEvent](), "process": reflect.TypeFor[bpfProcess]()} {
		t.Run(name, func(t *testing.T) { checkRecord(t, name, goType) })
	}
}

func checkRecord(t *testing.T, name string, goType reflect.Type) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	var record *btf.Struct
	if err := spec.Types.TypeByName(name, &record); err != nil {
		t.Fatal(err)
	}
	if record.Size != uint32(goType.Size()) {
		t.Fatalf("C has %d bytes, Go %d", record.Size, goType.Size())
	}
	next := uint32(0)
	for i, m := range record.Members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		if m.Offset.Bytes() != next {
			t.Errorf("hole of %d bytes before %s", m.Offset.Bytes()-next, m.Name)
		}
		next += uint32(size)
		if got := goType.Field(i + 1).Offset; got != uintptr(m.Offset.Bytes()) { // 0 is HostLayout
			t.Errorf("%s at %d in C, at %d in Go", m.Name, m.Offset.Bytes(), got)
		}
	}
	if next != record.Size {
		t.Errorf("hole of %d bytes at the end", record.Size-next)
	}
}

// TestClassicNeedsNoBTF: that program must load on kernels without BTF.
func TestClassicNeedsNoBTF(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for name, prog := range spec.Programs {
		if len(name) > 15 {
			t.Errorf("the kernel cuts the program's name %s", name)
		}
		relocations := 0
		for i := range prog.Instructions {
			if btf.CORERelocationMetadata(&prog.Instructions[i]) != nil {
				relocations++
			}
		}
		if name == bpfProgStSetStateTp && relocations > 0 {
			t.Errorf("%s has %d CO-RE relocations", name, relocations)
		}
		if name == bpfProgStSetState && (relocations == 0 || prog.Type != ebpf.Tracing) {
			t.Errorf("%s has %d CO-RE relocations, type %s: does this test still look at the right thing?", name, relocations, prog.Type)
		}
	}
}

func TestParseClassicFormat(t *testing.T) {
	const format = `name: inet_sock_set_state
ID: 1341
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:const void * skaddr;	offset:8;	size:8;	signed:0;
	field:int oldstate;	offset:16;	size:4;	signed:1;
	field:int newstate;	offset:20;	size:4;	signed:1;
	field:__u16 sport;	offset:24;	size:2;	signed:0;
	field:__u16 dport;	offset:26;	size:2;	signed:0;
	field:__u16 family;	offset:28;	size:2;	signed:0;
	field:__u16 protocol;	offset:30;	size:2;	signed:0;
	field:__u8 saddr[4];	offset:32;	size:4;	signed:0;
	field:__u8 daddr[4];	offset:36;	size:4;	signed:0;
	field:__u8 saddr_v6[16];	offset:40;	size:16;	signed:0;
	field:__u8 daddr_v6[16];	offset:56;	size:16;	signed:0;
`
	if got, err := parseClassicFormat(format); err != nil || got != 8 {
		t.Errorf("got %d, %v", got, err)
	}
	// before 5.6 the protocol had one byte, and what follows lay elsewhere
	old := strings.ReplaceAll(format, "field:__u8 saddr[4];	offset:32", "field:__u8 saddr[4];	offset:31")
	if _, err := parseClassicFormat(old); err == nil {
		t.Error("an unknown layout is accepted")
	}
	if _, err := parseClassicFormat("nothing"); err == nil {
		t.Error("no layout is accepted")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(make([]byte, unsafe.Sizeof(bpfEvent{})))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, sample []byte) {
		raw, err := wire(sample)
		if err != nil {
			if len(sample) >= int(unsafe.Sizeof(bpfEvent{})) {
				t.Fatal(err)
			}
			return
		}
		var e event.Event
		decode(raw, &e)
		if e.Family != 2 && e.Family != 10 && e.Local.IsValid() {
			t.Fatalf("an address of family %d: %s", e.Family, e.Local)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	sample := make([]byte, unsafe.Sizeof(bpfEvent{}))
	(*bpfEvent)(unsafe.Pointer(&sample[0])).Family = 2
	var e event.Event
	b.ReportAllocs()
	for b.Loop() {
		raw, err := wire(sample)
		if err != nil {
			b.Fatal(err)
		}
		decode(raw, &e)
	}
}
