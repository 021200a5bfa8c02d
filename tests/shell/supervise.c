/* supervise SOCKET MESSAGES PROGRAM [ARGUMENT...]: runs a program as a supervisor does (sd_notify(3)): NOTIFY_SOCKET is SOCKET, a path, or @
 * and the name of an abstract socket. Each message becomes a line of the file MESSAGES, with | in place of newlines. With WATCHDOG=USEC in the
 * environment it is to show that it is alive; with JOURNAL=FILE its standard error is FILE, and it is told that this is the journal. The
 * program is the process itself; its child, which receives, ends after it. */
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static void receive(int socket_fd, const char *path, pid_t program) {
    char text[4096];
    FILE *out = fopen(path, "w");
    struct timeval pause = {.tv_usec = 50000};
    setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &pause, sizeof pause);
    for (int last = 0; out;) {
        ssize_t length = recv(socket_fd, text, sizeof text - 1, 0);
        if (length >= 0) {
            text[length] = 0;
            for (char *at = text; (at = strchr(at, '\n'));) *at = '|';
            fprintf(out, "%s\n", text);
            fflush(out);
        } else if (last) {
            exit(0);
        }
        last = getppid() != program; /* what was sent before the end is still read */
    }
    exit(1);
}

int main(int count, char **words) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const char *name = words[1], *watchdog = getenv("WATCHDOG"), *journal = getenv("JOURNAL");
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name) + (name[0] != '@'));
    char text[64];
    int socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    pid_t program = getpid();
    if (count < 4) return 2;
    memcpy(at.sun_path, name, strlen(name));
    if (name[0] == '@') at.sun_path[0] = 0;
    if (bind(socket_fd, (struct sockaddr *)&at, length)) {
        perror(name);
        return 1;
    }
    if (fork() == 0) receive(socket_fd, words[2], program);
    setenv("NOTIFY_SOCKET", name, 1);
    if (watchdog) {
        setenv("WATCHDOG_USEC", watchdog, 1);
        snprintf(text, sizeof text, "%d", (int)program);
        setenv("WATCHDOG_PID", text, 1);
    }
    if (journal) {
        struct stat stat;
        int file = open(journal, O_WRONLY | O_CREAT | O_APPEND, 0600);
        fstat(file, &stat);
        dup2(file, 2);
        snprintf(text, sizeof text, "%llu:%llu", (unsigned long long)stat.st_dev, (unsigned long long)stat.st_ino);
        setenv("JOURNAL_STREAM", text, 1);
    }
    execvp(words[3], words + 3);
    perror(words[3]);
    return 1;
}
