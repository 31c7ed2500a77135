// SPDX-License-Identifier: Apache-2.0

// Command goleak leaks three connections in one way, says who must hold them,
// and ends with its standard input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"time"
)

const count = 3

var keep []any

// report says that this process holds n sockets; the runtime does not tell the
// descriptors of all of them.
func report(n int) {
	holders := make([][2]any, n)
	for i := range holders {
		holders[i] = [2]any{os.Getpid(), nil}
	}
	line, _ := json.Marshal(holders)
	fmt.Println(string(line))
}

// body gets responses and neither reads nor closes their bodies. The server
// closes when its answer was read, as a read takes the end of file with the data
// before it where both are there.
func body() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	answered := make(chan bool)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				panic(err)
			}
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
			<-answered
			c.Close()
		}
	}()
	for range count {
		resp, err := (&http.Client{Transport: &http.Transport{}}).Get("http://" + l.Addr().String())
		if err != nil {
			panic(err)
		}
		keep = append(keep, resp)
		answered <- true
	}
	report(count)
}

// stuck listens and never accepts: the handler before it hangs.
func stuck() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	for range count {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			panic(err)
		}
		c.Close()
	}
	keep = append(keep, l)
	report(count)
}

// correct reads, closes, and reuses.
func correct() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			resp, err := http.Get(server.URL)
			if err != nil {
				panic(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}()
	report(0)
}

func main() {
	map[string]func(){"body": body, "not_accepted": stuck, "correct": correct}[os.Args[1]]()
	io.Copy(io.Discard, os.Stdin)
}
