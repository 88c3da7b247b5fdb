/* Files and folders around the weights. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/temp.h"
#include "hv-weights.h"

int copy_file(const char *from, const char *to, struct hv_err *e)
{
    char tmp[HV_PATH], buf[65536];
    int fd = -1, rc;
    ssize_t n = 0;
    const int in = open(from, O_RDONLY | O_CLOEXEC);

    if (in < 0)
        return hv_fail(e, HV_EIO, "%s: %s", from, strerror(errno));
    if (hv_temp_open(tmp, to, &fd, e)) {
        close(in);
        return e->code;
    }
    while ((n = read(in, buf, sizeof buf)) > 0)
        if (write(fd, buf, (size_t)n) != n)
            break;
    rc = n ? hv_fail(e, HV_EIO, "%s: %s", n < 0 ? from : to, strerror(errno)) : 0;
    close(in);
    if (close(fd) && !rc)
        rc = hv_fail(e, HV_EIO, "%s: %s", to, strerror(errno));
    if (!rc)
        return hv_temp_commit(tmp, to, e);
    hv_temp_discard(tmp);
    return rc;
}

int make_folder(const char *path, struct hv_err *e)
{
    return mkdir(path, 0777) && errno != EEXIST ? hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno)) : 0;
}

int is_folder(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

int join(char path[4096], const char *dir, const char *name, struct hv_err *e)
{
    return snprintf(path, HV_PATH, "%s/%s", dir, name) < HV_PATH ? 0 : hv_fail(e, HV_EIO, "%s/%s: name too long", dir, name);
}

int write_text(const char *path, const char *text, struct hv_err *e)
{
    char tmp[HV_PATH];
    int fd = -1, rc = hv_temp_open(tmp, path, &fd, e);

    if (rc)
        return rc;
    for (size_t n = strlen(text), at = 0; at < n && !rc;) {
        const ssize_t put = write(fd, text + at, n - at);
        if (put < 0 && errno != EINTR)
            rc = hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
        at += put > 0 ? (size_t)put : 0;
    }
    if (close(fd) && !rc)
        rc = hv_fail(e, HV_EIO, "%s: %s", path, strerror(errno));
    if (!rc)
        return hv_temp_commit(tmp, path, e);
    hv_temp_discard(tmp);
    return rc;
}
