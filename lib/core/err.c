#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int hv_fail(struct hv_err *e, int code, const char *fmt, ...)
{
    va_list ap;

    if (e->code)
        return e->code;
    e->code = code;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    return code;
}

int hv_context(struct hv_err *e, const char *fmt, ...)
{
    char front[sizeof e->msg];
    va_list ap;
    size_t n, rest;

    va_start(ap, fmt);
    vsnprintf(front, sizeof front - 2, fmt, ap);                /* room for the colon and the blank */
    va_end(ap);
    strcat(front, ": ");
    n = strlen(front);
    rest = strlen(e->msg);
    if (rest > sizeof e->msg - 1 - n)
        rest = sizeof e->msg - 1 - n;
    memmove(e->msg + n, e->msg, rest);
    memcpy(e->msg, front, n);
    e->msg[n + rest] = 0;
    return e->code;
}
