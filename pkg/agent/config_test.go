// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var commented = regexp.MustCompile(`(?m)^( *)#((?:  )*(?:- )?[a-z][a-z_.]*:)`)

func TestFormatIsOfJSON(t *testing.T) {
	for config, want := range map[string]string{
		"format: ecs, stdout: {}": "", "format: json, otlp: {url: http://x}": "", "format: ecs, syslog: {network: udp, address: x:514}": "",
		"format: ecs, http: {preset: ndjson, url: http://x}": "", "format: ecs, forward: {address: x:24224}": "",
		"format: xml, stdout: {}": "none of json, ecs", "format: ecs, otlp: {}": "do not send", "format: ecs, journald: {}": "do not send",
		"format: ecs, syslog: {format: structured}": "do not send",
	} {
		_, err := LoadConfig([]byte("sinks: [{name: a, "+config+"}]"), nil, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", config, err)
		}
	}
}

// TestExampleConfig: the example parses as it is and with every key that is
// commented out, has every key, and the defaults that it shows are true.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("../../cmd/stated/dist/stated.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := LoadConfig(text, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := commented.ReplaceAllString(string(text), "$1$2")
	full := DefaultConfig()
	if err := full.decode([]byte(whole)); err != nil {
		t.Fatalf("%v\n%s", err, whole)
	}
	for i := range full.Sinks { // what excludes what else is there
		switch s := &full.Sinks[i]; {
		case s.OTLP != nil:
			s.OTLP.TLS = nil
		case s.HTTP != nil:
			s.HTTP.Table = ""
		}
	}
	if err := full.check(); err != nil {
		t.Errorf("%v\n%s", err, whole)
	}
	words, lists := configKeys(reflect.TypeFor[Config](), "")
	for _, key := range append(words, lists...) {
		last := key[strings.LastIndex(key, ".")+1:]
		if !regexp.MustCompile(`(?m)^ *(- )?` + last + `:`).MatchString(whole) {
			t.Errorf("%s is not in the example", key)
		}
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[SinkConfig](), reflect.TypeFor[FilterConfig](), reflect.TypeOf(SinkConfig{}.File).Elem()} {
		for i := range typ.NumField() {
			if key := typ.Field(i).Tag.Get("yaml"); !regexp.MustCompile(`(?m)^ *(- )?` + key + `:`).MatchString(whole) {
				t.Errorf("%s is not in the example", key)
			}
		}
	}
	for _, c := range []*Config{shipped, full} {
		c := *c
		c.Sinks, c.Filter = nil, FilterConfig{} // those are examples
		if len(c.Enrich.Docker)+len(c.Enrich.Podman) == 0 {
			c.Enrich.Docker, c.Enrich.Podman = nil, nil
		}
		if want := DefaultConfig(); !reflect.DeepEqual(&c, want) {
			t.Errorf("the example says %+v, the defaults are %+v", c, want)
		}
	}
	if !reflect.DeepEqual(full.Sinks[0].Records, defaultRecords) || full.Sinks[1].Stdout == nil {
		t.Errorf("%+v", full.Sinks)
	}
}

// TestCheckWritesNothing: neither is a file made, nor its folder wanted.
func TestCheckWritesNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadConfig([]byte("spool: {dir: "+dir+"/spool}\nsinks: [{name: a, file: {path: "+dir+"/a}}, {name: b, file: {path: "+dir+"/later/b, zstd: true}}]"), nil, nil); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
}

func TestKubeletURL(t *testing.T) {
	for url, want := range map[string]string{
		"https://127.0.0.1:10250": "", "ftp://x": "like https://", "user:secret@x": "like https://", "https://user:secret@x:port": "like https://", "https://user:%secret@x": "like https://",
	} {
		_, err := LoadConfig(nil, nil, []string{"enrich.kubelet.url='" + url + "'"})
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sec")) {
			t.Errorf("%s: %v", url, err)
		}
	}
}
