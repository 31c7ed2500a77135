// SPDX-License-Identifier: Apache-2.0

package syslog

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/stated-tcp/stated/pkg/sink/sinktest"
)

// header is RFC 5424, 6, to the letter: lengths, characters, six digits.
var header = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) \[`)

type parsed struct {
	priority             int
	time                 time.Time
	host, app, msgid, id string
	params               map[string]string
	text                 string
}

func parse(m string) (*parsed, error) {
	h := header.FindStringSubmatch(m)
	if h == nil {
		return nil, fmt.Errorf("no header: %.200q", m)
	}
	p := &parsed{host: h[3], app: h[4], msgid: h[6], params: map[string]string{}}
	p.priority, _ = strconv.Atoi(h[1])
	p.time, _ = time.Parse(time.RFC3339Nano, h[2])
	rest := m[len(h[0]):]
	end := strings.IndexAny(rest, " ]")
	p.id, rest = rest[:end], rest[end:]
	for strings.HasPrefix(rest, " ") {
		name, after, ok := strings.Cut(rest[1:], `="`)
		if !ok || name == "" || len(name) > 32 || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`=]"`, c) }) {
			return nil, fmt.Errorf("no SD-NAME: %.100q", rest)
		}
		var value strings.Builder
		i := 0
		for ; ; i++ {
			if i >= len(after) {
				return nil, fmt.Errorf("%s does not end", name)
			}
			c := after[i]
			if c == '"' {
				break
			}
			if c == ']' || c < ' ' {
				return nil, fmt.Errorf("%s holds a bare %q", name, c)
			}
			if c == '\\' && i+1 < len(after) && strings.IndexByte(`"\]`, after[i+1]) >= 0 {
				i++
				c = after[i]
			}
			value.WriteByte(c)
		}
		p.params[name] = value.String()
		rest = after[i+1:]
	}
	text, ok := strings.CutPrefix(rest, "] ")
	if !ok {
		return nil, fmt.Errorf("structured data ends with %.20q", rest)
	}
	p.text = text
	return p, nil
}

func keep(store *sinktest.Store, m string) error {
	p, err := parse(m)
	if err != nil {
		store.Add(err.Error(), nil)
		return err
	}
	store.Add(p.params["uid"], []byte(p.text))
	return nil
}

// serveOctets reads octet-counted messages.
func serveOctets(l net.Listener, store *sinktest.Store) {
	sinktest.Each(l, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			m, err := counted(in, ' ')
			if err != nil || keep(store, m) != nil {
				return
			}
		}
	})
}

func counted(in *bufio.Reader, sep byte) (string, error) {
	length, err := in.ReadString(sep)
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(length[:len(length)-1])
	if err != nil {
		return "", err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return string(b), err
}

// serveRELP answers each message once it is kept.
func serveRELP(l net.Listener, store *sinktest.Store) {
	sinktest.Each(l, func(c net.Conn) {
		in, out := bufio.NewReader(c), bufio.NewWriter(c)
		last := 0
		for {
			txnr, err1 := in.ReadString(' ')
			command, err2 := in.ReadString(' ')
			if err1 != nil || err2 != nil {
				return
			}
			n, err := strconv.Atoi(strings.TrimSpace(txnr))
			if err != nil || n != last+1 && n != 1 {
				return
			}
			last = n
			var data string
			if command == "close " {
				fmt.Fprintf(out, "%d rsp 0\n0 serverclose 0\n", n)
				out.Flush()
				return
			}
			if data, err = counted(in, ' '); err != nil {
				return
			}
			if end, err := in.ReadByte(); err != nil || end != '\n' {
				return
			}
			answer := "200 OK"
			switch command {
			case "open ":
				answer += "\nrelp_version=0\nrelp_software=stub\ncommands=syslog"
			case "syslog ":
				if keep(store, data) != nil {
					answer = "500 no message"
				}
			default:
				answer = "500 unknown"
			}
			fmt.Fprintf(out, "%d rsp %d %s\n", n, len(answer), answer)
			if in.Buffered() == 0 {
				out.Flush()
			}
		}
	})
}
