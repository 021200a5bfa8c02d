/* activate WHERE... -- PROGRAM [ARGUMENT...]: runs a program with listening sockets as a supervisor passes them (sd_listen_fds(3)):
 * WHERE is a port of 127.0.0.1 (0: any), or the path of a Unix socket. With DATAGRAM=1 the sockets are of a wrong kind. The port that each
 * TCP socket got is printed, one a line. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int tcp(int port, int kind) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    socklen_t length = sizeof at;
    int socket_fd = socket(AF_INET, kind, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(socket_fd, (struct sockaddr *)&at, sizeof at) || (kind == SOCK_STREAM && listen(socket_fd, 16))) return -1;
    getsockname(socket_fd, (struct sockaddr *)&at, &length);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    return socket_fd;
}

static int local(const char *path, int kind) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int socket_fd = socket(AF_UNIX, kind, 0);
    strncpy(at.sun_path, path, sizeof at.sun_path - 1);
    if (bind(socket_fd, (struct sockaddr *)&at, sizeof at) || (kind == SOCK_STREAM && listen(socket_fd, 16))) return -1;
    return socket_fd;
}

int main(int count, char **words) {
    int kind = getenv("DATAGRAM") ? SOCK_DGRAM : SOCK_STREAM, n = 1;
    char text[32];
    for (; n < count && strcmp(words[n], "--"); n++) {
        int opened = words[n][0] == '/' ? local(words[n], kind) : tcp(atoi(words[n]), kind);
        if (opened != n + 2) { /* the first one is 3 */
            perror(words[n]);
            return 1;
        }
    }
    snprintf(text, sizeof text, "%d", n - 1);
    setenv("LISTEN_FDS", text, 1);
    snprintf(text, sizeof text, "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
    execv(words[n + 1], words + n + 1);
    perror(words[n + 1]);
    return 1;
}
