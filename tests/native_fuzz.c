/* Fuzzing of the native kernel by coverage, as libFuzzer has it: `make fuzz`. The input is a file that may be a JPEG.
 *
 * Where the kernel decodes a region, libjpeg alone must have no warning for the file, and the same pixels in the region.
 * Every processor's resize must give the same bytes.
 */
#include "kernel.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

enum { MOST_PIXELS = 1 << 16, MOST_OUTPUTS = 40 };

static jmp_buf give_up;

static void on_error(j_common_ptr jpeg) {
    (void)jpeg;
    longjmp(give_up, 1);
}

static void on_message(j_common_ptr jpeg, int level) {
    if (level < 0) {
        on_error(jpeg);
    }
}

/* The whole image as libjpeg has it, C-contiguous RGB, the caller's to free; NULL where it has anything to tell of. */
static uint8_t *decode_whole(const uint8_t *data, size_t num_bytes, int denominator, int *height, int *width) {
    struct jpeg_decompress_struct jpeg = {0};
    struct jpeg_error_mgr manager;
    uint8_t *volatile pixels = NULL;
    volatile int is_done = 0;
    jpeg.err = jpeg_std_error(&manager);
    manager.error_exit = on_error;
    manager.emit_message = on_message;
    *height = *width = 0;
    if (setjmp(give_up) == 0) {
        jpeg_create_decompress(&jpeg);
        jpeg_mem_src(&jpeg, data, num_bytes);
        jpeg_read_header(&jpeg, TRUE);
        jpeg.out_color_space = JCS_RGB;
        jpeg.scale_num = 1;
        jpeg.scale_denom = (unsigned)denominator;
        jpeg.dct_method = JDCT_ISLOW;
        jpeg_calc_output_dimensions(&jpeg);
        if ((uint64_t)jpeg.output_width * jpeg.output_height <= MOST_PIXELS) {
            *height = (int)jpeg.output_height;
            *width = (int)jpeg.output_width;
            jpeg_start_decompress(&jpeg);
            pixels = malloc(3 * (size_t)*height * (size_t)*width);
            while (jpeg.output_scanline < jpeg.output_height) {
                JSAMPROW row = pixels + 3 * (size_t)*width * jpeg.output_scanline;
                jpeg_read_scanlines(&jpeg, &row, 1);
            }
            jpeg_finish_decompress(&jpeg);
            is_done = 1;
        }
    }
    jpeg_destroy_decompress(&jpeg);
    if (!is_done) {
        free(pixels);
        return NULL;
    }
    return pixels;
}

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static uint32_t state;

/* From 0 to `end` - 1. */
static int below(int end) {
    state = state * 1664525u + 1013904223u;
    return (int)((uint64_t)(state >> 8) * (uint64_t)end >> 24);
}

static void resize_both_ways(const uint8_t *frame, int stride_pixels, region_t part) {
    static uint8_t one[3 * MOST_OUTPUTS * MOST_OUTPUTS], other[sizeof one];
    const image_t image = {frame + 3 * ((ptrdiff_t)part.top * stride_pixels + part.left), 3 * (ptrdiff_t)stride_pixels,
                           part.height, part.width};
    const box_t box = {0.25 * (part.height > 1), 0, part.height - 0.5 * (part.height > 1), part.width};
    target_t target = {.values = one, .height = 1 + below(MOST_OUTPUTS), .width = 1 + below(MOST_OUTPUTS)};
    const int is_mirrored = below(2);
    require(resize_triangle(image, box, is_mirrored, target, best_passes()), "no memory");
    target.values = other;
    require(resize_triangle(image, box, is_mirrored, target, &portable_passes), "no memory");
    require(memcmp(one, other, 3 * (size_t)target.height * (size_t)target.width) == 0, "processors differ");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t num_bytes) {
    state = 2166136261u;
    for (size_t i = 0; i < num_bytes; i++) {
        state = (state ^ data[i]) * 16777619u;
    }
    const int denominator = 1 << below(4);
    int height, width;
    uint8_t *whole = decode_whole(data, num_bytes, denominator, &height, &width);
    if (height > 0) {
        uint8_t *frame = malloc(3 * (size_t)height * (size_t)width);
        region_t part = {.height = 1 + below(height), .width = 1 + below(width)};
        part.top = below(height - part.height + 1);
        part.left = below(width - part.width + 1);
        if (decode_region(data, num_bytes, denominator, part, frame, height, width, OURS)) {
            require(whole != NULL, "the kernel decoded what libjpeg warns of");
            for (int row = part.top; row < part.top + part.height; row++) {
                const size_t at = 3 * ((size_t)row * (size_t)width + (size_t)part.left);
                require(memcmp(whole + at, frame + at, 3 * (size_t)part.width) == 0, "pixels differ");
            }
            resize_both_ways(frame, width, part);
        }
        free(frame);
    }
    free(whole);
    return 0;
}
