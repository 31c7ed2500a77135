// SPDX-License-Identifier: Apache-2.0

// leakgo opens connections at two places, and keeps its ends: the other side
// closes.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

var (
	kept []net.Conn
	l    net.Listener
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

//go:noinline
func openInPool() {
	c, err := net.Dial("tcp", l.Addr().String())
	check(err)
	a, err := l.Accept()
	check(err)
	kept = append(kept, c)
	a.Close()
}

//go:noinline
func openForReport() {
	c, err := net.Dial("tcp", l.Addr().String())
	check(err)
	a, err := l.Accept()
	check(err)
	kept = append(kept, c)
	a.Close()
}

func main() {
	var err error
	l, err = net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	in.ReadString('\n') // now we are watched
	for range 3 {
		openInPool()
	}
	for range 2 {
		openForReport()
	}
	fmt.Println("leaked")
	in.ReadString('\n')
}
