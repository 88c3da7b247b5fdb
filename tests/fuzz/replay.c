/* replay.c - drives a fuzz target without a fuzzer: every file of the corpus once, then, on request, mutations of them.
 *
 *     fuzz_NAME [--seconds N] CORPUS...            files or folders; an empty or missing corpus is a failure
 *
 * Mutations follow from a fixed seed. The input at work is kept in crash-NAME until it has passed, so that an abort leaves
 * it behind; only with --seconds. Targets also link with -fsanitize=fuzzer instead of this file. */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LARGEST ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct input {
    uint8_t *data;
    size_t   n;
} inputs[4096];
static int n_inputs;

/* Runs on a copy of exactly n bytes: a sanitizer sees a read past its end. */
static void run(const uint8_t *data, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);

    if (!copy)
        abort();
    memcpy(copy, data, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

static void add_file(const char *path)
{
    uint8_t *data = malloc(LARGEST);
    FILE *f = fopen(path, "rb");

    if (!f || !data || n_inputs == (int)(sizeof inputs / sizeof *inputs)) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    inputs[n_inputs++] = (struct input){data, fread(data, 1, LARGEST, f)};
    fclose(f);
}

static void add(const char *path)
{
    struct stat st;
    char name[4096];

    if (stat(path, &st)) {
        perror(path);
        exit(1);
    }
    if (!S_ISDIR(st.st_mode)) {
        add_file(path);
        return;
    }
    DIR *d = opendir(path);
    for (const struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.' && snprintf(name, sizeof name, "%s/%s", path, e->d_name) < (int)sizeof name)
            add(name);
    if (d)
        closedir(d);
}

static uint64_t next(void)
{
    static uint64_t s = 88172645463325252u;

    s ^= s << 13;
    s ^= s >> 7;
    return s ^= s << 17;
}

/* One to eight changes: a byte, a bit, an interesting number, a piece of another input, a cut, a piece twice. */
static size_t mutate(uint8_t *buf, size_t n)
{
    static const uint32_t numbers[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff};

    for (uint64_t k = 1 + next() % 8; k > 0 && n > 0; k--) {
        const size_t at = next() % n;
        const struct input *other = &inputs[next() % (uint64_t)n_inputs];
        size_t len = 1 + next() % 64;

        switch (next() % 6) {
        case 0: buf[at] = (uint8_t)next(); break;
        case 1: buf[at] ^= (uint8_t)(1u << next() % 8); break;
        case 2:
            if (at + 4 <= n)
                memcpy(buf + at, &numbers[next() % (sizeof numbers / sizeof *numbers)], 1 + next() % 4);
            break;
        case 3:
            if (other->n > len && at + len <= n)
                memcpy(buf + at, other->data + next() % (other->n - len), len);
            break;
        case 4: n = at; break;
        default:
            len = len < n - at ? len : n - at;
            if (n + len <= LARGEST) {
                memmove(buf + at + len, buf + at, n - at);
                n += len;
            }
        }
    }
    return n;
}

static void mutations(const char *program, double seconds)
{
    const char *slash = strrchr(program, '/');
    const time_t start = time(NULL);
    uint8_t *buf = malloc(LARGEST);
    char crash[256];
    uint64_t count = 0;

    snprintf(crash, sizeof crash, "crash-%s", slash ? slash + 1 : program);
    const int fd = open(crash, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    while (buf && difftime(time(NULL), start) < seconds) {
        const struct input *in = &inputs[next() % (uint64_t)n_inputs];

        memcpy(buf, in->data, in->n);
        const size_t n = mutate(buf, in->n);
        if (pwrite(fd, buf, n, 0) != (ssize_t)n || ftruncate(fd, (off_t)n)) {
            perror(crash);
            exit(1);
        }
        run(buf, n);
        count++;
    }
    close(fd);
    unlink(crash);
    free(buf);
    printf("%s: %llu mutations\n", slash ? slash + 1 : program, (unsigned long long)count);
}

int main(int argc, char **argv)
{
    double seconds = 0;
    int i = 1;

    if (argc > 2 && !strcmp(argv[1], "--seconds")) {
        seconds = atof(argv[2]);
        i = 3;
    }
    for (; i < argc; i++)
        add(argv[i]);
    if (!n_inputs) {
        fprintf(stderr, "%s: no corpus\n", argv[0]);
        return 1;
    }
    for (int k = 0; k < n_inputs; k++)
        run(inputs[k].data, inputs[k].n);
    if (seconds > 0)
        mutations(argv[0], seconds);
    for (int k = 0; k < n_inputs; k++)
        free(inputs[k].data);
    return 0;
}
