#include "core/utf8.h"

int hv_utf8_valid(const void *text, size_t n)
{
    const unsigned char *s = text;

    for (size_t i = 0; i < n;) {
        const unsigned c = s[i];
        const size_t more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : n;

        if (!c || more > n - i - 1)
            return 0;
        for (size_t k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80)
                return 0;
        /* Overlong, surrogates, above U+10FFFF: told by the second byte. */
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) || (c == 0xf0 && s[i + 1] < 0x90) ||
            (c == 0xf4 && s[i + 1] > 0x8f))
            return 0;
        i += more + 1;
    }
    return 1;
}
