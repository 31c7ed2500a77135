// SPDX-License-Identifier: Apache-2.0

// Command hoard holds many sockets on loopback, leaked and healthy ones, and
// measures commands while it does: the crowd of .ci/bench. Each command is one
// argument, run by the shell.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// perWorker is how many descriptors one process holds at most: containers
// often may have no more than 20,000.
const perWorker = 17_500

func main() {
	leaked := flag.Int("leaked", 20_000, "sockets in CLOSE_WAIT")
	healthy := flag.Int("healthy", 50_000, "sockets in ESTABLISHED")
	worker := flag.Int("worker", -1, "hold a share, as worker `N`, until standard input ends")
	flag.Parse()
	var err error
	if *worker >= 0 {
		err = hold(*worker, *leaked, *healthy)
	} else {
		err = run(*leaked, *healthy, flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hoard:", err)
		os.Exit(1)
	}
}

// run has workers hold the sockets while it runs the commands.
func run(leaked, healthy int, commands []string) error {
	workers := (leaked + healthy + perWorker - 1) / perWorker
	for n := range workers {
		cmd := exec.Command("/proc/self/exe", fmt.Sprintf("-worker=%d", n),
			fmt.Sprintf("-leaked=%d", share(leaked, workers, n)), fmt.Sprintf("-healthy=%d", 2*share(healthy/2, workers, n)))
		cmd.Stderr = os.Stderr
		until, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		ready, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		defer func() {
			until.Close()
			cmd.Wait()
		}()
		if _, err := ready.Read(make([]byte, 1)); err != nil {
			return fmt.Errorf("worker %d: %w", n, err)
		}
	}
	for _, command := range commands {
		measure(command)
	}
	return nil
}

func share(total, workers, n int) int { return total*(n+1)/workers - total*n/workers }

// hold opens sockets and keeps them until standard input ends.
func hold(worker, leaked, healthy int) error {
	limit := unix.Rlimit{Cur: perWorker + 1000, Max: perWorker + 1000}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise RLIMIT_NOFILE to %d: %w", limit.Cur, err)
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(l, 128); err != nil {
		return err
	}
	at, err := unix.Getsockname(l)
	if err != nil {
		return err
	}
	last := -1
	for n := range leaked + healthy/2 {
		from := [4]byte{127, byte(1 + worker), byte(n >> 12), byte(1 + n>>5&0x7f)}
		c, a, err := pair(l, at, from)
		if err != nil {
			return fmt.Errorf("connection %d: %w", n, err)
		}
		if n < leaked {
			unix.Close(c)
			last = a
		}
	}
	for last >= 0 { // the last FIN has come, so all have
		info, err := unix.GetsockoptTCPInfo(last, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == 8 { // TCP_CLOSE_WAIT
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	return nil
}

func pair(l int, at unix.Sockaddr, from [4]byte) (c, a int, err error) {
	if c, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return
	}
	if err = unix.SetsockoptInt(c, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return
	}
	if err = unix.Bind(c, &unix.SockaddrInet4{Addr: from}); err != nil {
		return
	}
	if err = unix.Connect(c, at); err != nil {
		return
	}
	a, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC)
	return
}

// measure runs the command and says what it took.
func measure(command string) {
	cmd := exec.Command("sh", "-c", "exec "+command)
	began := time.Now()
	out, _ := cmd.Output() // its exit code is what it found
	wall := time.Since(began)
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	fmt.Printf("%-40s %6.2f s, CPU %5.2f s, memory %4d MB, %8d bytes of output\n", command, wall.Seconds(),
		(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(), u.Maxrss/1024, len(out))
}
