// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"reflect"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/file"
	"github.com/stated-tcp/stated/pkg/sink/forward"
	"github.com/stated-tcp/stated/pkg/sink/http"
	"github.com/stated-tcp/stated/pkg/sink/journald"
	"github.com/stated-tcp/stated/pkg/sink/otlp"
	"github.com/stated-tcp/stated/pkg/sink/syslog"
)

// SinkConfig is one sink: what it gets, how, and the one key that says what
// kind it is. A new kind is a pointer here and a line in newSink.
type SinkConfig struct {
	Name         string              `yaml:"name"`
	Records      []string            `yaml:"records"`
	Match        map[string][]string `yaml:"match"`
	Sample       SampleConfig        `yaml:"sample"`
	Format       string              `yaml:"format"` // json, ecs
	BatchRecords int                 `yaml:"batch_records"`
	BatchBytes   int                 `yaml:"batch_bytes"`
	Timeout      time.Duration       `yaml:"timeout"`

	Stdout   *struct{}        `yaml:"stdout"`
	File     *file.Config     `yaml:"file"`
	OTLP     *otlp.Config     `yaml:"otlp"`
	Syslog   *syslog.Config   `yaml:"syslog"`
	Forward  *forward.Config  `yaml:"forward"`
	HTTP     *http.Config     `yaml:"http"`
	Journald *journald.Config `yaml:"journald"`
}

func newSink(c *SinkConfig) (sink.Sink, error) {
	switch {
	case c.File != nil:
		return file.New(*c.File)
	case c.OTLP != nil:
		return otlp.New(*c.OTLP)
	case c.Syslog != nil:
		return syslog.New(*c.Syslog)
	case c.Forward != nil:
		return forward.New(*c.Forward)
	case c.HTTP != nil:
		return http.New(*c.HTTP)
	case c.Journald != nil:
		return journald.New(*c.Journald)
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
