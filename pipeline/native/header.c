/* Where a JPEG's header has segments that may tell which way up it is. */
#include "kernel.h"

enum { BEGINS = 0xFF, START_OF_SCAN = 0xDA, APP1 = 0xE1 };

int next_app1(const uint8_t *jpeg, size_t num_bytes, size_t *position, size_t *start, size_t *stop) {
    size_t at = *position;
    while (at + 4 <= num_bytes && jpeg[at] == BEGINS && jpeg[at + 1] != START_OF_SCAN) {
        if (jpeg[at + 1] == BEGINS) { /* padding before a marker */
            at++;
            continue;
        }
        *start = at + 4;
        *stop = at + 2 + ((size_t)jpeg[at + 2] << 8 | jpeg[at + 3]);
        *position = *stop;
        if (jpeg[at + 1] == APP1) {
            return 1;
        }
        at = *stop;
    }
    return 0;
}
