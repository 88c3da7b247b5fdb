/* profile.h - time of the operations that matter, by family, on a device whose lanes run beside the host.
 *
 *     hv_profile_open(dev, e);  ... operations ...;  hv_dev_sync(dev, e);
 *     hv_profile_read(dev, part);                          // seconds, flops and calls of each family since open
 *     hv_profile_close(dev);
 *
 * Each operation of a family costs two events: not for runs whose whole time is measured. */
#ifndef HV_PROFILE_H
#define HV_PROFILE_H

#include "ops/dev.h"

#ifdef __cplusplus
extern "C" {
#endif

enum hv_family { HV_PRODUCTS, HV_ATTENTION, HV_WIDENING, HV_FAMILIES };

struct hv_profile_part {
    double   seconds, flops;
    uint64_t calls;
};

int  hv_profile_open(struct hv_dev *d, struct hv_err *e);
void hv_profile_read(struct hv_dev *d, struct hv_profile_part part[HV_FAMILIES]);   /* the device must be past all of it */
void hv_profile_close(struct hv_dev *d);

/* Around an operation; nothing happens on a device without a profile. */
void hv_profile_begin(struct hv_dev *d, enum hv_family f, double flops);
void hv_profile_end(struct hv_dev *d);

#ifdef __cplusplus
}
#endif
#endif
