/* Whether the libjpeg that is loaded, perhaps not the one of the headers, is driven as its sources known have it. */
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#include "kernel.h"

enum { HEIGHT = 8, WIDTH = 16 };

/* Two blocks of grey, one lighter than the other. */
static const uint8_t two_blocks[] = {
    0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0, [7 ... 70] = 16, /* quantised by 16 */
    0xFF, 0xC0, 0, 11, 8, 0, HEIGHT, 0, WIDTH, 1, 1, 0x11, 0,
    0xFF, 0xC4, 0, 20, 0x00, 1, [105] = 2, /* DC: the only code, one bit, says that a value of two bits follows */
    0xFF, 0xC4, 0, 20, 0x10, 1, [127] = 0, /* AC: the only code ends the block */
    0xFF, 0xDA, 0, 8, 1, 1, 0x00, 0, 63, 0, 0x60, 0xFF, 0xD9,
};

static int is_decoded(decoder_t decoder, uint8_t *frame) {
    const region_t whole = {0, 0, HEIGHT, WIDTH};
    return decode_region(two_blocks, sizeof two_blocks, 1, whole, frame, HEIGHT, WIDTH, decoder);
}

decoder_t best_decoder(void) {
    uint8_t expected[HEIGHT * WIDTH * 3], ours[sizeof expected];
    const int is_known = LIBJPEG_TURBO_VERSION_NUMBER >= 2000000 && LIBJPEG_TURBO_VERSION_NUMBER < 4000000;
    /* Ours writes where libjpeg has it write, and does so only after it was called, without writing, for each block. */
    const int is_ours = is_known && is_decoded(LIBJPEGS, expected) && is_decoded(OURS_UNWRITTEN, ours) &&
                        is_decoded(OURS, ours) && memcmp(ours, expected, sizeof expected) == 0;
    return is_ours ? OURS : LIBJPEGS;
}
