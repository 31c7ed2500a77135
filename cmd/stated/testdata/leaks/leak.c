// SPDX-License-Identifier: Apache-2.0
// Leaks three connections in one way, says who must hold them, and ends with
// its standard input.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define COUNT 3

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fds[COUNT], pid = getpid();
	char buf[16];

	check(argc == 2, "usage");
	check(l >= 0 && !bind(l, (struct sockaddr *)&addr, sizeof(addr)) && !listen(l, 8), "listen");
	check(!getsockname(l, (struct sockaddr *)&addr, &len), "getsockname");
	for (int i = 0; i < COUNT; i++) {
		int c = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		check(c >= 0 && !connect(c, (struct sockaddr *)&addr, sizeof(addr)), "connect");
		fds[i] = accept(l, NULL, NULL); /* without SOCK_CLOEXEC */
		check(fds[i] >= 0, "accept");
		close(c);
		check(read(fds[i], buf, sizeof(buf)) == 0, "read");
		if (!strcmp(argv[1], "shut_down"))
			shutdown(fds[i], SHUT_WR); /* and never close() */
	}
	if (!strcmp(argv[1], "exec")) { /* another program inherits them */
		pid = fork();
		if (pid == 0) {
			execlp("cat", "cat", NULL);
			_exit(1);
		}
		for (int i = 0; i < COUNT; i++)
			close(fds[i]);
	}
	printf("[[%d,[%d]],[%d,[%d]],[%d,[%d]]]\n", pid, fds[0], pid, fds[1], pid, fds[2]);
	fflush(stdout);
	if (pid != getpid())
		pause(); /* standard input is the other program's */
	while (read(0, buf, sizeof(buf)) > 0)
		;
	return 0;
}
