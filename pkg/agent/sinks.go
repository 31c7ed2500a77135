// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"reflect"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/file"
)

// SinkConfig is one sink: what it gets, how, and the one key that says what
// kind it is. A new kind is a pointer here and a line in newSink.
type SinkConfig struct {
	Name         string              `yaml:"name"`
	Records      []string            `yaml:"records"`
	Match        map[string][]string `yaml:"match"`
	Sample       SampleConfig        `yaml:"sample"`
	BatchRecords int                 `yaml:"batch_records"`
	BatchBytes   int                 `yaml:"batch_bytes"`
	Timeout      time.Duration       `yaml:"timeout"`

	Stdout *struct{}    `yaml:"stdout"`
	File   *file.Config `yaml:"file"`
}

func newSink(c *SinkConfig) (sink.Sink, error) {
	switch {
	case c.File != nil:
		return file.New(*c.File)
	default:
		return file.New(file.Config{})
	}
}

// kinds names the kinds of sink that c has.
func (s *SinkConfig) kinds() (names []string) {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Pointer && !v.Field(i).IsNil() {
			names = append(names, v.Type().Field(i).Tag.Get("yaml"))
		}
	}
	return names
}

func sinkKinds() (names []string) {
	t := reflect.TypeFor[SinkConfig]()
	for i := range t.NumField() {
		if t.Field(i).Type.Kind() == reflect.Pointer {
			names = append(names, t.Field(i).Tag.Get("yaml"))
		}
	}
	return names
}
