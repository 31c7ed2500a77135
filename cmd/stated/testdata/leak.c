// SPDX-License-Identifier: Apache-2.0

/* Opens connections at two places, and keeps its ends: the other side closes. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in at = {.sin_family = AF_INET};
static int listener;

#define OPENS(name)                                                         \
	__attribute__((noinline)) int name(void)                                \
	{                                                                       \
		int fd = socket(AF_INET, SOCK_STREAM, 0);                           \
		if (connect(fd, (struct sockaddr *)&at, sizeof(at))) exit(1);       \
		close(accept(listener, NULL, NULL));                                \
		return fd;                                                          \
	}

OPENS(open_in_pool)
OPENS(open_for_report)

__attribute__((noinline)) int accept_request(void)
{
	int fd, peer = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(peer, (struct sockaddr *)&at, sizeof(at))) exit(1);
	fd = accept(listener, NULL, NULL);
	close(peer);
	return fd;
}

static void *idle(void *unused)
{
	pause();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	socklen_t n = sizeof(at);
	char line[9];

	listener = socket(AF_INET, SOCK_STREAM, 0);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *)&at, n) || listen(listener, 9) || getsockname(listener, (struct sockaddr *)&at, &n)) return 1;
	/* with threads, glibc enters the kernel in another way (SINGLE_THREAD_P) */
	if (argc > 1 && pthread_create(&thread, NULL, idle, argv)) return 1;
	printf("ready\n");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin)) return 1; /* now we are watched */
	for (int i = 0; i < 3; i++) open_in_pool();
	for (int i = 0; i < 2; i++) open_for_report();
	accept_request();
	printf("leaked\n");
	fflush(stdout);
	return fgets(line, sizeof(line), stdin) != NULL;
}
