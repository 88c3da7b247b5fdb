/* err.h - one failure: a code, which is also the exit status of the program, and a message.
 *
 *     if (n < 1)
 *         return hv_fail(e, HV_EINPUT, "tensor '%s': %d frames, expected 1 or more", name, n);
 *     ...
 *     if (hv_in_open(&in, path, e))
 *         return hv_context(e, "%s", path);            // "path: what: why"
 *
 * A function that opens, parses, places or allocates returns 0 or an hv_code; its last argument is the record. */
#ifndef HV_ERR_H
#define HV_ERR_H

#ifdef __cplusplus
extern "C" {
#endif

enum hv_code {
    HV_OK      = 0,
    HV_EDIFF   = 1,     /* the answer is no: diff found a difference, check found a fault */
    HV_EUSAGE  = 2,     /* wrong options */
    HV_EINPUT  = 3,     /* malformed or mismatched input */
    HV_EIO     = 4,     /* read or write failed */
    HV_ENOMEM  = 5,     /* does not fit: host, device or budget */
    HV_EDEVICE = 6,     /* device absent, lost, or fault in a kernel */
    HV_EUNSUP  = 7,     /* well-formed but not supported */
    HV_ENUM    = 8,     /* NaN or Inf in a tensor that crosses a stage */
    HV_EFACE   = 9      /* no face, or a choice that the options do not settle */
};

struct hv_err {
    int  code;          /* enum hv_code */
    char msg[1024];
};

/* Fills the record and returns the code. The first failure is kept: a record that already holds one is not changed. */
int hv_fail(struct hv_err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Prepends "text: " to the message and returns the code. */
int hv_context(struct hv_err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif
#endif
