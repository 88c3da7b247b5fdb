/* temp.h - output files that are whole or not there.
 *
 *     char tmp[HV_PATH];
 *     if (hv_temp_open(tmp, "out.mp4", &fd, e)) ...                // ".out.XXXXXX.mp4" beside it
 *     ... write ...
 *     rc = ok ? hv_temp_commit(tmp, "out.mp4", e) : (hv_temp_discard(tmp), e->code);
 *
 * A temporary that is open when SIGINT, SIGTERM or SIGHUP arrives is removed before the process dies by it. The
 * table of open temporaries is global, since a signal handler has no argument. */
#ifndef HV_TEMP_H
#define HV_TEMP_H

#include "core/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HV_PATH 4096

/* Makes an empty file beside `final`, with the same suffix; *fd is open for reading and writing, mode 0666 less umask.
 * HV_EIO when it cannot be made. final may not be a folder. */
int hv_temp_open(char tmp[HV_PATH], const char *final, int *fd, struct hv_err *e);

/* Renames the temporary over `final`. On failure it is removed. The caller has closed fd (and checked that). */
int hv_temp_commit(const char *tmp, const char *final, struct hv_err *e);

void hv_temp_discard(const char *tmp);

/* Removes temporaries of `final` that killed processes have left; for the only process that writes it. */
void hv_temp_stale(const char *final);

/* Removes whatever is open, for a handler that ends the process. */
void hv_temp_sweep(void);

#ifdef __cplusplus
}
#endif
#endif
