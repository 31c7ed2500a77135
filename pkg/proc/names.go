// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// Name is how people call a container. What was not found is empty.
type Name struct {
	Container string
	Image     string
	Pod       string
	Namespace string // of the pod
}

// NamesOptions say whom to ask. Nobody is asked who is not named here.
type NamesOptions struct {
	Docker  []string      // unix sockets of the Docker API: /var/run/docker.sock, /run/user/UID/docker.sock
	Podman  []string      // /run/podman/podman.sock, /run/user/UID/podman/podman.sock
	Pods    PodSource     // where pods are listed
	Timeout time.Duration // of one question; default 500 ms
	Retry   time.Duration // how long whoever failed, or did not know, is left alone; default 10 s
	Size    int           // containers remembered; default 4096
	Now     func() time.Time
}

// NamesStats counts what Names did.
type NamesStats struct {
	Asked  uint64 // questions to engines and lists of pods read
	Failed uint64 // without an answer
	Absent uint64 // answered: not known
}

// Names finds out what containers are called, and remembers it after they are
// gone. Safe for use by several goroutines. Answers are as hostile as everything
// else: a container's user may own the socket.
type Names struct {
	opts    NamesOptions
	engines []*engine
	mu      sync.Mutex         // guards all below and engine.until; never held while asking
	known   map[string]answer  // by container id and pod uid
	pods    map[string]podName // by uid, and by container id
	podsAt  time.Time          // when next to list them
	stats   NamesStats
}

// answer is what was found out. Until then it is not asked again; zero: never,
// for ids are not used twice.
type answer struct {
	name  Name
	until time.Time
}

type engine struct {
	runtime string
	socket  string
	client  *http.Client
	until   time.Time // failed: left alone so long
}

// NewNames asks nobody yet.
func NewNames(opts NamesOptions) *Names {
	if opts.Timeout <= 0 {
		opts.Timeout = 500 * time.Millisecond
	}
	if opts.Retry <= 0 {
		opts.Retry = 10 * time.Second
	}
	if opts.Size <= 0 {
		opts.Size = 4096
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	n := &Names{opts: opts, known: make(map[string]answer), pods: make(map[string]podName)}
	for _, s := range opts.Docker {
		n.engines = append(n.engines, newEngine("docker", s))
	}
	for _, s := range opts.Podman {
		n.engines = append(n.engines, newEngine("podman", s))
	}
	return n
}

func newEngine(runtime, socket string) *engine {
	return &engine{runtime: runtime, socket: socket, client: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
	}}
}

// Stats returns the counts so far.
func (n *Names) Stats() NamesStats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Lookup names a container, from memory or by asking, which may take
// NamesOptions.Timeout for each of those asked. What could be found is returned
// with an error too; not to be known anywhere is none.
func (n *Names) Lookup(ctx context.Context, c Container) (Name, error) {
	key := c.ID + "/" + c.PodUID
	if key == "/" {
		return Name{}, nil
	}
	now := n.opts.Now()
	n.mu.Lock()
	a, ok := n.known[key]
	n.mu.Unlock()
	if ok && (a.until.IsZero() || now.Before(a.until)) {
		return a.name, nil
	}

	name := Name{Container: c.Name}
	var errs []error
	if c.PodUID != "" && n.opts.Pods != nil {
		errs = append(errs, n.askPods(ctx, now, c, &name))
	} else if c.PodUID == "" && isHex(c.ID, 64) {
		errs = append(errs, n.askEngines(ctx, now, c, &name))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if name == (Name{}) {
		n.stats.Absent++
	}
	if name.Container == "" && a.name != (Name{}) {
		name = a.name // was known in part, and is gone
	}
	a = answer{name: name}
	if name == (Name{}) || c.ID != "" && name.Container == "" { // a pod is listed before its containers are
		a.until = now.Add(n.opts.Retry)
	}
	for old := range n.known {
		if len(n.known) < n.opts.Size {
			break
		}
		delete(n.known, old)
	}
	n.known[key] = a
	return name, errors.Join(errs...)
}

// Known names a container from memory. whole is false where Lookup would ask.
func (n *Names) Known(c Container) (name Name, whole bool) {
	now := n.opts.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.known[c.ID+"/"+c.PodUID]
	if !ok {
		return Name{Container: c.Name}, false
	}
	return a.name, a.until.IsZero() || now.Before(a.until)
}

// askEngines asks those of the runtime, or all where the path does not say whose it is.
func (n *Names) askEngines(ctx context.Context, now time.Time, c Container, name *Name) error {
	var errs []error
	for _, e := range n.engines {
		n.mu.Lock()
		ask := (c.Runtime == "" || c.Runtime == e.runtime) && !now.Before(e.until)
		if ask {
			n.stats.Asked++
		}
		n.mu.Unlock()
		if !ask {
			continue
		}
		got, err := e.inspect(ctx, c.ID, n.opts.Timeout)
		if err != nil {
			n.mu.Lock()
			n.stats.Failed++
			e.until = now.Add(n.opts.Retry)
			n.mu.Unlock()
			errs = append(errs, err)
			continue
		}
		if got != (Name{}) {
			*name = got
			return nil
		}
	}
	return errors.Join(errs...)
}

// inspect asks for one container (Docker Engine API, ContainerInspect, which
// Podman speaks too). An empty Name: the engine does not know it.
func (e *engine) inspect(ctx context.Context, id string, timeout time.Duration) (Name, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body struct {
		ID     string `json:"Id"`
		Name   string
		Config struct{ Image string }
	}
	status, err := getJSON(ctx, e.client, "http://engine/containers/"+id+"/json", "", 4<<20, &body)
	switch {
	case err != nil:
		return Name{}, fmt.Errorf("ask %s at %s for the name of a container: %w", e.runtime, e.socket, err)
	case status == http.StatusNotFound || body.ID != id:
		return Name{}, nil
	}
	if len(body.Name) > 0 && body.Name[0] == '/' {
		body.Name = body.Name[1:]
	}
	return Name{Container: short(body.Name), Image: short(body.Config.Image)}, nil
}

// short keeps what a name may sensibly have.
func short(s string) string { return s[:min(len(s), 512)] }
