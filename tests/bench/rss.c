/* rss COMMAND... - runs a command and prints its peak resident MiB and its seconds on stderr's last line: "rss MIB S". */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec a, b;
    struct rusage u;
    int status = 0;
    pid_t pid;

    if (argc < 2) {
        fprintf(stderr, "usage: rss COMMAND...\n");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &a);
    pid = fork();
    if (!pid) {
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    if (pid < 0 || wait4(pid, &status, 0, &u) < 0) {
        perror("rss");
        return 4;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    fprintf(stderr, "rss %.1f %.2f\n", (double)u.ru_maxrss / 1024,
            (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
