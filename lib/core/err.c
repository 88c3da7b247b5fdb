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
    char tmp[sizeof e->msg];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(tmp, sizeof tmp, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof tmp)
        n = (int)sizeof tmp - 1;
    snprintf(tmp + n, sizeof tmp - (size_t)n, ": %s", e->msg);
    memcpy(e->msg, tmp, sizeof tmp);
    e->msg[sizeof e->msg - 1] = 0;
    return e->code;
}
