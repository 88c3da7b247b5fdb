/* Pictures of any format from hostile bytes: PNG, JPEG, EXIF, PPM. */
#include <stddef.h>
#include <stdint.h>

#include "io/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hv_image im;
    struct hv_err e = {0};

    if (!hv_image_decode(&im, data, n, 1, &e)) {
        volatile uint8_t sum = 0;                               /* every pixel is there */
        for (size_t i = 0; i < (size_t)im.width * (size_t)im.height * 3; i++)
            sum = (uint8_t)(sum + im.rgb[i]);
    }
    hv_image_close(&im);
    return 0;
}
