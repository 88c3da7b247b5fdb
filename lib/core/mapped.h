/* mapped.h - files that are read where they are mapped, and a clear end when one of them is cut short meanwhile.
 *
 *     p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
 *     hv_mapped_add(p, n, path);
 *     ...
 *     hv_mapped_remove(p);
 *     munmap(p, n);
 *
 * Reading a page that the file no longer has raises SIGBUS, in whatever thread and however deep in a kernel; nothing
 * can be returned from there. A program that called hv_mapped_guard then says "PROGRAM: FILE: was cut short while it
 * was read", removes its temporaries and exits with HV_EIO. A SIGBUS anywhere else goes where it would have gone.
 *
 * The table is global, since a signal handler has no argument. It is of a fixed size: mappings that find no place are
 * read as well, only without the line. Any thread. */
#ifndef HV_MAPPED_H
#define HV_MAPPED_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* path: borrowed until the mapping is removed. */
void hv_mapped_add(const void *p, size_t bytes, const char *path);
void hv_mapped_remove(const void *p);

/* The path of the mapping that an address lies in; NULL: in none. Safe in a signal handler. */
const char *hv_mapped_path(const void *p);

/* Installs the handler, once for a process. program: borrowed for good. */
void hv_mapped_guard(const char *program);

#ifdef __cplusplus
}
#endif
#endif
