// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/stated-tcp/stated/pkg/proc"
	"github.com/stated-tcp/stated/pkg/sink"
)

// Config is the file of `stated agent`. cmd/stated/dist/stated.yaml explains
// each key.
type Config struct {
	MaxConnections int           `yaml:"max_connections"`
	RingBytes      uint32        `yaml:"ring_bytes"`
	Listen         string        `yaml:"listen"`
	Drain          time.Duration `yaml:"drain"`
	Filter         FilterConfig  `yaml:"filter"`
	Leaks          LeaksConfig   `yaml:"leaks"`
	Enrich         EnrichConfig  `yaml:"enrich"`
	Spool          SpoolConfig   `yaml:"spool"`
	Sinks          []SinkConfig  `yaml:"sinks"`
}

// FilterConfig says of which connections records are made.
type FilterConfig struct {
	Ports       []uint        `yaml:"ports"`
	LocalPorts  []uint        `yaml:"local_ports"`
	RemotePorts []uint        `yaml:"remote_ports"`
	Addresses   []string      `yaml:"addresses"`
	Processes   []string      `yaml:"processes"`
	PIDs        []uint        `yaml:"pids"`
	Roles       []string      `yaml:"roles"`
	States      string        `yaml:"states"`
	Netns       string        `yaml:"netns"`
	MinDuration time.Duration `yaml:"min_duration"`
	Own         bool          `yaml:"own"` // connections of the agent itself, too
}

// LeaksConfig says how to look for sockets that their process does not close.
type LeaksConfig struct {
	Every  time.Duration `yaml:"every"`
	MinAge time.Duration `yaml:"min_age"`
}

// EnrichConfig says what else records tell of processes, and who is asked.
type EnrichConfig struct {
	CommandLine bool          `yaml:"command_line"`
	Docker      []string      `yaml:"docker"`
	Podman      []string      `yaml:"podman"`
	PodsFile    string        `yaml:"pods_file"`
	Kubelet     KubeletConfig `yaml:"kubelet"`
}

// KubeletConfig is a proc.Kubelet.
type KubeletConfig struct {
	URL       string `yaml:"url"`
	TokenFile string `yaml:"token_file"`
	CAFile    string `yaml:"ca_file"`
	Insecure  bool   `yaml:"insecure"`
}

func (c *EnrichConfig) check() error {
	for _, path := range slices.Concat(c.Docker, c.Podman) {
		if !strings.HasPrefix(path, "/") {
			return fmt.Errorf("%q is not the path of a unix socket, like /run/docker.sock", path)
		}
	}
	k := &c.Kubelet
	switch u, err := url.Parse(k.URL); {
	case k.URL == "" && *k != (KubeletConfig{}):
		return errors.New("kubelet: needs a url, like https://127.0.0.1:10250")
	case k.URL != "" && c.PodsFile != "":
		return errors.New("pods come from kubelet or from pods_file, not from both")
	case err != nil || k.URL != "" && (u.Host == "" || u.Scheme != "https" && u.Scheme != "http"):
		return errors.New("kubelet: url: want one like https://127.0.0.1:10250") // not what it is: that may hold a password
	}
	return nil
}

// processes asks whom the configuration names.
func (c *EnrichConfig) processes() *Processes {
	o := proc.NamesOptions{Docker: c.Docker, Podman: c.Podman}
	switch {
	case c.PodsFile != "":
		o.Pods = proc.PodFile(c.PodsFile)
	case c.Kubelet.URL != "":
		k := &c.Kubelet
		o.Pods = proc.Kubelet{URL: k.URL, TokenFile: k.TokenFile, CAFile: k.CAFile, Insecure: k.Insecure}
	}
	var names *proc.Names
	if len(o.Docker)+len(o.Podman) > 0 || o.Pods != nil {
		names = proc.NewNames(o)
	}
	return NewProcesses(proc.New(proc.Options{Cmdline: c.CommandLine}), names)
}

// SpoolConfig says where records wait, and what happens when they are many.
type SpoolConfig struct {
	Dir          string `yaml:"dir"`
	SegmentBytes int64  `yaml:"segment_bytes"`
	MaxBytes     int64  `yaml:"max_bytes"`
	KeepBytes    int64  `yaml:"keep_bytes"`
	Sync         string `yaml:"sync"`    // always, never, or a time
	OnFull       string `yaml:"on_full"` // drop_oldest, drop_newest, block
}

// syncEvery is the time between syncs; 0 is always, negative never.
func (c *SpoolConfig) syncEvery() (time.Duration, error) {
	switch c.Sync {
	case "always":
		return 0, nil
	case "never":
		return -1, nil
	}
	d, err := time.ParseDuration(c.Sync)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("spool.sync: %q is none of always, never, or a time like 1s", c.Sync)
	}
	return d, nil
}

// SampleConfig leaves out most of the healthy short connections.
type SampleConfig struct {
	ShorterThan time.Duration `yaml:"shorter_than"`
	Rate        float64       `yaml:"rate"`
}

// DefaultConfig is what a file that says nothing means.
func DefaultConfig() *Config {
	return &Config{
		MaxConnections: 1 << 18, RingBytes: 8 << 20, Drain: 10 * time.Second,
		Leaks: LeaksConfig{Every: time.Minute, MinAge: time.Minute},
		Spool: SpoolConfig{Dir: "/var/lib/stated/spool", SegmentBytes: 16 << 20, MaxBytes: 1 << 30, KeepBytes: 64 << 20,
			Sync: "1s", OnFull: "drop_oldest"},
	}
}

// LoadConfig reads the text of a file, then the environment (STATED_SPOOL_DIR
// for spool.dir), then settings like spool.dir=/x, each over what was before.
// Unknown keys are errors that name the line; so is what a sink does not like,
// which includes the files that it reads, as a *fs.PathError. It connects to
// nobody and writes nothing.
func LoadConfig(text []byte, environ, settings []string) (*Config, error) {
	c := DefaultConfig()
	if err := c.decode(text); err != nil {
		return nil, err
	}
	keys := make(map[string]string)
	words, _ := configKeys(reflect.TypeFor[Config](), "")
	for _, key := range words {
		keys[variable(key)] = key
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if key, ok := keys[name]; ok {
			if err := c.set(key, value); err != nil {
				return nil, fmt.Errorf("environment variable %s: %w", name, err)
			}
		}
	}
	for _, kv := range settings {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, fmt.Errorf("setting %q: it must be KEY=VALUE, like spool.dir=/var/lib/stated/spool", kv)
		}
		if err := c.set(key, value); err != nil {
			return nil, fmt.Errorf("setting %q: %w", kv, err)
		}
	}
	return c, c.check()
}

func (c *Config) set(key, value string) error {
	var tree any
	if err := yaml.Unmarshal([]byte(value), &tree); err != nil {
		return fmt.Errorf("the value: %w", err)
	}
	for _, part := range slices.Backward(strings.Split(key, ".")) {
		tree = map[string]any{part: tree}
	}
	text, err := yaml.Marshal(tree)
	if err != nil {
		return err
	}
	err = c.decode(text)
	if err != nil { // there is no line to speak of
		err = errors.New(lineNumber.ReplaceAllString(err.Error(), ""))
	}
	return err
}

var (
	unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)
	lineNumber = regexp.MustCompile(`line \d+: `)
	wrongType  = regexp.MustCompile("^(line \\d+: )cannot unmarshal !!(\\S+)(?: `(.*)`)? into (\\S+)$")
)

// decode is strict.
func (c *Config) decode(text []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	err := dec.Decode(c)
	if errors.Is(err, io.EOF) {
		return nil // only comments
	}
	var typed *yaml.TypeError
	if errors.As(err, &typed) {
		lines := make([]string, len(typed.Errors))
		for i, line := range typed.Errors {
			lines[i] = plain(line)
		}
		return errors.New(strings.Join(lines, "; "))
	}
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return errors.New("there is a second document: only one is read")
	}
	return nil
}

// goTypes says what a value must be, by the type that it is read into.
var goTypes = map[string]string{
	"int": "a whole number", "int64": "a whole number", "uint16": "a whole number", "uint32": "a whole number", "uint64": "a whole number",
	"float64": "a number", "bool": "true or false", "string": "a word", "time.Duration": "a time like 10s",
}

// plain says in the words of the configuration what the decoder says in those of Go.
func plain(line string) string {
	line = unknownKey.ReplaceAllString(line, `unknown key "$1"`)
	m := wrongType.FindStringSubmatch(line)
	if m == nil {
		return line
	}
	value, want := "it", goTypes[m[4]]
	switch {
	case m[3] != "":
		value = strconv.Quote(m[3])
	case m[2] == "seq":
		value = "a list"
	case m[2] == "map":
		value = "a section"
	}
	switch {
	case want != "":
	case strings.HasPrefix(m[4], "[]"):
		want = "a list"
	default:
		want = "a section"
	}
	return m[1] + value + " is not " + want
}

var sinkName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

func (c *Config) check() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.MaxConnections < 1 {
		add("max_connections: %d: at least 1", c.MaxConnections)
	}
	if page := uint32(os.Getpagesize()); c.RingBytes&(c.RingBytes-1) != 0 || c.RingBytes%page != 0 { // 0: the default
		add("ring_bytes: %d: a power of two, and at least %d", c.RingBytes, page)
	}
	if c.Drain < 0 {
		add("drain: %v: not below zero", c.Drain)
	}
	if c.Leaks.Every != 0 && c.Leaks.Every < time.Second || c.Leaks.MinAge < 0 {
		add("leaks: every: %v: at least 1s, or 0 for never; min_age: %v: not below zero", c.Leaks.Every, c.Leaks.MinAge)
	}
	if err := c.Enrich.check(); err != nil {
		add("enrich: %w", err)
	}
	if _, err := c.Spool.syncEvery(); err != nil {
		errs = append(errs, err)
	}
	if !filepath.IsAbs(c.Spool.Dir) {
		add("spool.dir: %q: want an absolute path", c.Spool.Dir)
	}
	if !slices.Contains([]string{"drop_oldest", "drop_newest", "block"}, c.Spool.OnFull) {
		add("spool.on_full: %q is none of drop_oldest, drop_newest, block", c.Spool.OnFull)
	}
	if c.Spool.SegmentBytes < 4096 || c.Spool.MaxBytes < 4*c.Spool.SegmentBytes {
		add("spool.max_bytes: %d: at least four times segment_bytes (%d), which is at least 4096", c.Spool.MaxBytes, c.Spool.SegmentBytes)
	}
	if c.Spool.KeepBytes < 0 || c.Spool.KeepBytes > c.Spool.MaxBytes/2 {
		add("spool.keep_bytes: %d: from 0 to half of max_bytes (%d)", c.Spool.KeepBytes, c.Spool.MaxBytes)
	}
	seen := make(map[string]bool)
	files := make(map[string]string) // the sink of each path
	for i := range c.Sinks {
		s := &c.Sinks[i]
		if !sinkName.MatchString(s.Name) {
			add("sinks[%d].name: %q: lower case letters, digits, - and _", i, s.Name)
		}
		if seen[s.Name] {
			add("sinks[%d].name: %q is there twice: each has its own place in the spool", i, s.Name)
		}
		seen[s.Name] = true
		wrong := s.check()
		for _, err := range wrong {
			add("sink %s: %w", s.Name, err)
		}
		if len(wrong) > 0 {
			continue
		}
		if s.File == nil {
			continue
		}
		path := filepath.Clean(s.File.Path)
		if other, ok := files[path]; ok {
			add("sink %s: file: path: %s is the file of sink %s", s.Name, path, other)
		}
		files[path] = s.Name
		if in, err := filepath.Rel(c.Spool.Dir, path); err == nil && filepath.IsLocal(in) {
			add("sink %s: file: path: %s is in the spool (%s), which is stated's own", s.Name, path, c.Spool.Dir)
		}
	}
	return errors.Join(errs...)
}

// check tells all that is wrong, what the sink itself does not like only where
// nothing else is.
func (s *SinkConfig) check() (errs []error) {
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, r := range s.Records {
		if !slices.Contains(sink.EventNames, r) {
			add("records: %q is none of %s", r, strings.Join(sink.EventNames, ", "))
		}
	}
	if s.Sample.ShorterThan < 0 || s.Sample.Rate < 0 || s.Sample.Rate > 1 {
		add("sample: rate is from 0 to 1, shorter_than not below zero")
	}
	if s.Sample.ShorterThan > 0 && s.Sample.Rate == 0 {
		add("sample: shorter_than needs a rate: the share of connections to keep")
	}
	if n := len(s.kinds()); n != 1 {
		add("it has %d of %s: exactly one says what kind of sink it is", n, strings.Join(sinkKinds(), ", "))
	}
	switch s.Format {
	case "", "json":
	case "ecs":
		if s.OTLP != nil || s.Journald != nil || s.Syslog != nil && s.Syslog.Format == "structured" {
			add("format: ecs is a form of JSON, which otlp, journald, and syslog with format: structured do not send")
		}
	default:
		add("format: %q is none of json, ecs", s.Format)
	}
	if len(errs) > 0 {
		return errs
	}
	if err := s.try(); err != nil {
		return []error{err}
	}
	return nil
}

// try makes the sink and unmakes it.
func (s *SinkConfig) try() error {
	if s.File != nil {
		return checkFile(s.File.Path)
	}
	made, err := newSink(s)
	if err != nil {
		return err
	}
	return made.Close() // it has not been used
}

// checkFile does not open the file, which would make it. Nor does it look for
// the folder: systemd makes that of the unit when it starts it.
func checkFile(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("file: path: %q: want an absolute path", path)
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("file: path: %s is no regular file", path)
	}
	return nil
}
