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

// TestExampleConfig: the example parses as it is and with every key that is
// commented out, has every key, and the defaults that it shows are true.
func TestExampleConfig(t *testing.T) {
	text, err := os.ReadFile("../../cmd/stated/dist/stated.yaml")
	if err != nil {
		t.Skip(err) // a test binary on a machine without the source
	}
	shipped, err := LoadConfig(text, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := commented.ReplaceAllString(string(text), "$1$2")
	full, err := LoadConfig([]byte(whole), nil, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, whole)
	}
	for _, key := range append(scalarKeys(reflect.TypeFor[Config](), ""), scalarKeys(reflect.TypeFor[FilterConfig](), "filter.")...) {
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
		if want := DefaultConfig(); !reflect.DeepEqual(&c, want) {
			t.Errorf("the example says %+v, the defaults are %+v", c, want)
		}
	}
	if !reflect.DeepEqual(full.Sinks[0].Records, defaultRecords) || full.Sinks[1].Stdout == nil {
		t.Errorf("%+v", full.Sinks)
	}
}
