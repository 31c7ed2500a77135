// SPDX-License-Identifier: Apache-2.0

package transport_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stated-tcp/stated/pkg/sink"
	"github.com/stated-tcp/stated/pkg/sink/sinktest"
	"github.com/stated-tcp/stated/pkg/sink/transport"
)

func TestSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	for text, want := range map[string]string{"key\n": "key", "  a b \r\n": "a b", "": "", "\n": "", "two\nlines": "", "nul\x00": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := transport.Secret(path).Read(); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := transport.Secret("/nonexistent").Read(); err == nil {
		t.Error("a missing file is no error")
	}
}

// TestRenewedCertificate: the client's certificate is read at each handshake.
func TestRenewedCertificate(t *testing.T) {
	a := sinktest.NewAuthority(t)
	client := a.Client(t)
	names := make(chan string, 1)
	c := sinktest.StartCollector(t, a.Server(t, time.Now().Add(time.Hour)), func(l net.Listener, _ *sinktest.Store) {
		sinktest.Each(l, func(c net.Conn) {
			secure := c.(*tls.Conn)
			if secure.Handshake() == nil {
				names <- secure.ConnectionState().PeerCertificates[0].Subject.CommonName
			}
		})
	})
	d, err := transport.NewDialer("tcp", c.Address, client)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := a.Issue(t, "renewed", time.Now().Add(time.Hour))
	for _, want := range []string{"client", "renewed"} {
		conn, err := d.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := <-names; got != want {
			t.Errorf("the collector saw %s, want %s", got, want)
		}
		conn.Close()
		os.Rename(cert, client.CertFile)
		os.Rename(key, client.KeyFile)
	}
}

func TestRefused(t *testing.T) {
	why := errors.New("why")
	var large *sink.TooLarge
	if err := transport.Refused(2, why); !errors.As(err, &large) || !errors.Is(err, why) {
		t.Errorf("two records: %v", err)
	}
	var rejected *sink.Rejected
	if err := transport.Refused(1, why); !errors.As(err, &rejected) || len(rejected.Indexes) != 1 {
		t.Errorf("one record: %v", err)
	}
}

// TestDrained: bytes that the peer's kernel did not take are not sent, and a
// connection that was reset has nothing left to send, but is no success.
func TestDrained(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("hello"))
	if err := transport.Drained(t.Context(), conn); err != nil {
		t.Errorf("a peer that takes all: %v", err)
	}
	conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	conn.Write(make([]byte, 64<<20)) // more than both buffers
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := transport.Drained(ctx, conn); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a full peer: %v", err)
	}
	peer.(*net.TCPConn).SetLinger(0)
	peer.Close()
	if err := transport.Drained(t.Context(), conn); err == nil {
		t.Error("a reset connection counts as sent")
	}
}

// TestAnswerTooLong: a collector cannot fill our memory.
func TestAnswerTooLong(t *testing.T) {
	c := sinktest.StartCollector(t, nil, func(l net.Listener, _ *sinktest.Store) {
		http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			piece := make([]byte, 1<<20)
			for {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}))
	})
	client, err := transport.NewClient(transport.HTTP{URL: "http://" + c.Address}, "/")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Post(t.Context(), client.URL, nil, []byte("x")); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("an endless answer: %v", err)
	}
}

// TestURL: what is wrong with a URL is told without the password that may be in
// it, wherever that is.
func TestURL(t *testing.T) {
	for url, says := range map[string]string{
		"http://x": "", "https://x:1/a@b": "",
		"not a url": `"not a url": want http://host`, "ftp://x": `"ftp://x": want http://host`, "http:///a": "want http://host", "": "want http://host",
		"http://x:port": `invalid port ":port"`, "http://x/%zz": `invalid URL escape "%zz"`,
		"http://user:secret@x": "it holds credentials", "http://secret@x": "it holds credentials",
		"http://user:%zzsecret@x": "password_file", "http://user:sec%ret@x": "password_file", "http://user:secret@x:port": "password_file",
		"http://user:secret/@x": "password_file", "http://user:secret?@x": "password_file", "http://user:secret @x y": "password_file",
		"user:secret@x": "password_file", "http:user:secret@x": "password_file", "http://user:secret\x7f@x": "password_file", "//user:secret@x": "password_file",
		"ftp://user:secret@x": "password_file", "http:/user:secret@x": "password_file",
	} {
		client, err := transport.NewClient(transport.HTTP{URL: url}, "/")
		if (err == nil) != (says == "") || err != nil && (!strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "sec")) {
			t.Errorf("%s: %v", url, err)
		}
		if err == nil {
			client.Close()
		}
	}
}
