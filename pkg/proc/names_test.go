// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var webID = strings.Repeat("ab", 32)

// serve answers on a unix socket as an engine does.
func serve(t *testing.T, h http.HandlerFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return socket
}

func inspect(asked *int, name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		*asked++
		if r.URL.Path != "/containers/"+webID+"/json" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"Id":%q,"Name":%q,"Config":{"Image":"nginx:1.29"},"Other":[1]}`, webID, name)
	}
}

func TestEngineNames(t *testing.T) {
	var docker, podman int
	now := time.Unix(0, 0)
	n := NewNames(NamesOptions{Docker: []string{serve(t, inspect(&docker, "/web"))}, Podman: []string{serve(t, inspect(&podman, "pod-web"))},
		Timeout: 30 * time.Second, Now: func() time.Time { return now }})
	ask := func(c Container, want Name, dockers, podmans int) {
		t.Helper()
		if got, err := n.Lookup(context.Background(), c); err != nil || got != want || docker != dockers || podman != podmans {
			t.Errorf("%+v: %+v, %v; docker asked %d times, podman %d", c, got, err, docker, podman)
		}
	}
	ask(Container{ID: webID, Runtime: "docker"}, Name{Container: "web", Image: "nginx:1.29"}, 1, 0)
	ask(Container{ID: webID, Runtime: "docker"}, Name{Container: "web", Image: "nginx:1.29"}, 1, 0) // from memory
	other := Container{ID: strings.Repeat("0", 64)}
	ask(other, Name{}, 2, 1)
	ask(other, Name{}, 2, 1) // not again at once
	now = now.Add(time.Minute)
	ask(other, Name{}, 3, 2)
	ask(Container{ID: webID, Runtime: "containerd"}, Name{Container: "web", Image: "nginx:1.29"}, 3, 2)
	ask(Container{ID: "../../x", Runtime: "docker"}, Name{}, 3, 2)
	ask(Container{ID: "box", Name: "box", Runtime: "lxc"}, Name{Container: "box"}, 3, 2)
	ask(Container{}, Name{}, 3, 2)
}

func TestBadEngine(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"error":    func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://localhost/x", 302) },
		"garbage":  func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{")) },
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for b := make([]byte, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		},
		"silent": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			timeout := 30 * time.Second
			if name == "silent" {
				timeout = 50 * time.Millisecond
			}
			n := NewNames(NamesOptions{Docker: []string{serve(t, h)}, Timeout: timeout})
			if got, err := n.Lookup(context.Background(), Container{ID: webID, Runtime: "docker"}); err == nil || got != (Name{}) {
				t.Errorf("%+v, %v", got, err)
			}
			// Left alone now, also for others.
			if got, err := n.Lookup(context.Background(), Container{ID: strings.Repeat("1", 64), Runtime: "docker"}); err != nil || got != (Name{}) {
				t.Errorf("%+v, %v", got, err)
			}
			if s := n.Stats(); s != (NamesStats{Asked: 1, Failed: 1, Absent: 2}) {
				t.Errorf("%+v", s)
			}
		})
	}
	n := NewNames(NamesOptions{Docker: []string{"/nonexistent"}})
	if _, err := n.Lookup(context.Background(), Container{ID: webID}); err == nil {
		t.Error("nobody there, and no error")
	}
}

const uidWeb, uidStatic = "2e0a7e5c-9b1f-4b0e-8a5b-0d3c1f6b7a90", "0123456789abcdef0123456789abcdef"

func podJSON() string {
	return fmt.Sprintf(`{"kind":"PodList","apiVersion":"v1","items":[
{"metadata":{"name":"web-7d4","namespace":"shop","uid":%q},"status":{"phase":"Running","containerStatuses":[{"name":"nginx","image":"nginx:1.29","containerID":"containerd://%s"}]}},
{"metadata":{"name":"etcd-n1","namespace":"kube-system","uid":"x","annotations":{"kubernetes.io/config.hash":%q}},"status":{}}]}`, uidWeb, webID, uidStatic)
}

func checkPods(t *testing.T, src PodSource) {
	t.Helper()
	n := NewNames(NamesOptions{Pods: src, Timeout: 30 * time.Second})
	for c, want := range map[Container]Name{
		{ID: webID, PodUID: uidWeb, Runtime: "containerd"}: {"nginx", "nginx:1.29", "web-7d4", "shop"},
		{PodUID: uidWeb}: {"", "", "web-7d4", "shop"},
		{ID: strings.Repeat("c", 64), PodUID: uidStatic}: {"", "", "etcd-n1", "kube-system"},
		{PodUID: strings.Replace(uidWeb, "2", "3", 1)}:   {},
	} {
		if got, err := n.Lookup(context.Background(), c); err != nil || got != want {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
	if s := n.Stats(); s.Asked != 1 {
		t.Errorf("%+v", s)
	}
}

func TestPodFile(t *testing.T) {
	f := filepath.Join(t.TempDir(), "pods.json")
	if err := os.WriteFile(f, []byte(podJSON()), 0o644); err != nil {
		t.Fatal(err)
	}
	checkPods(t, PodFile(f))
	if _, err := NewNames(NamesOptions{Pods: PodFile(f + "x")}).Lookup(context.Background(), Container{PodUID: uidWeb}); err == nil {
		t.Error("no file, and no error")
	}
}

// TestContainerAfterItsPod: kubelet lists a pod before its containers run.
func TestContainerAfterItsPod(t *testing.T) {
	f := filepath.Join(t.TempDir(), "pods.json")
	put := func(s string) {
		if err := os.WriteFile(f, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Unix(0, 0)
	n := NewNames(NamesOptions{Pods: PodFile(f), Now: func() time.Time { return now }})
	ask := func(want Name) {
		t.Helper()
		if got, err := n.Lookup(context.Background(), Container{ID: webID, PodUID: uidWeb}); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	put(strings.Replace(podJSON(), webID, "", 1))
	ask(Name{Pod: "web-7d4", Namespace: "shop"})
	put(podJSON())
	ask(Name{Pod: "web-7d4", Namespace: "shop"})
	now = now.Add(time.Minute)
	ask(Name{"nginx", "nginx:1.29", "web-7d4", "shop"})
	put(`{"items":[]}`)
	now = now.Add(time.Hour)
	ask(Name{"nginx", "nginx:1.29", "web-7d4", "shop"})
}

func TestNamesBounded(t *testing.T) {
	n := NewNames(NamesOptions{Size: 10})
	for i := range 100 {
		n.Lookup(context.Background(), Container{ID: fmt.Sprint(i)})
	}
	if len(n.known) != 10 {
		t.Errorf("%d remembered", len(n.known))
	}
}

func TestKubelet(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/pods" || r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write([]byte(podJSON()))
	}))
	defer s.Close()
	s.Config.ErrorLog = nil
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca"), filepath.Join(dir, "token")
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644)
	os.WriteFile(token, []byte("secret\n"), 0o600)
	checkPods(t, Kubelet{URL: s.URL, CAFile: ca, TokenFile: token})
	checkPods(t, Kubelet{URL: s.URL + "/", Insecure: true, TokenFile: token})
	for _, bad := range []Kubelet{{URL: s.URL, TokenFile: token}, {URL: s.URL, CAFile: ca}, {URL: s.URL, CAFile: token, TokenFile: token}} {
		if got, err := NewNames(NamesOptions{Pods: bad, Timeout: 30 * time.Second}).Lookup(context.Background(), Container{PodUID: uidWeb}); err == nil || got != (Name{}) {
			t.Errorf("%+v: %+v, %v", bad, got, err)
		}
	}
}
