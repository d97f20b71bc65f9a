/* A part of a JPEG through libjpeg-turbo: rows and columns beside it are entropy-decoded, and nothing more. */
#include "entropy.h"
#include "kernel.h"

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "jpeglib.h is not libjpeg-turbo's, which alone can skip rows and columns"
#endif

typedef struct {
    struct jpeg_error_mgr manager;
    jmp_buf give_up;
} trouble_t;

static void on_error(j_common_ptr jpeg) { longjmp(((trouble_t *)jpeg->err)->give_up, 1); }

static void on_message(j_common_ptr jpeg, int level) {
    if (level < 0) { /* a warning: whether it is a harmless one is decided where its words are read */
        on_error(jpeg);
    }
}

/* Whether the coefficients of a progressive file are all there: libjpeg guesses missing ones from blocks around. */
static int is_complete(const struct jpeg_decompress_struct *jpeg) {
    if (!jpeg->progressive_mode) {
        return 1;
    }
    for (int component = 0; component < jpeg->num_components; component++) {
        for (int coefficient = 0; coefficient < DCTSIZE2; coefficient++) {
            if (jpeg->coef_bits[component][coefficient] != 0) {
                return 0;
            }
        }
    }
    return 1;
}

/* Of less than two columns of chroma libjpeg interpolates nothing. */
enum { LEAST_COLUMNS = 8 };

static int smaller(int one, int other) { return one < other ? one : other; }

static int greater(int one, int other) { return one > other ? one : other; }

/* Read rows up to `bottom` into their places; columns begin at `left`. */
static void read_rows(struct jpeg_decompress_struct *jpeg, uint8_t *frame, size_t stride, JDIMENSION left, int bottom) {
    while (jpeg->output_scanline < (JDIMENSION)bottom) {
        JSAMPROW row = frame + jpeg->output_scanline * stride + left * 3;
        jpeg_read_scanlines(jpeg, &row, 1); /* from memory it is never suspended: one row, or an error */
    }
}

static void read_region(struct jpeg_decompress_struct *jpeg, scan_t *scan, region_t needed, uint8_t *frame) {
    const int height = (int)jpeg->output_height, width = (int)jpeg->output_width;
    const size_t stride = (size_t)width * 3;
    /* The outermost pixels of what is decoded are taken for the image's edge where chroma is interpolated. */
    const int top = greater(needed.top - 1, 0), bottom = smaller(needed.top + needed.height + 1, height);
    JDIMENSION left = (JDIMENSION)greater(smaller(needed.left - 1, width - LEAST_COLUMNS), 0);
    const int right = smaller(greater(needed.left + needed.width + 1, (int)left + LEAST_COLUMNS), width);
    JDIMENSION num_columns = (JDIMENSION)right - left;
    if (num_columns < jpeg->output_width) {
        jpeg_crop_scanline(jpeg, &left, &num_columns);
        if (jpeg->comps_in_scan > 1) { /* else an MCU is a block, which may be narrower than what is cropped to */
            const int mcu = jpeg->min_DCT_scaled_size * jpeg->max_h_samp_factor;
            narrow_scan(scan, (long)left / mcu, ((long)(left + num_columns) - 1) / mcu);
        }
    }
    if (top > 0) {
        jpeg_skip_scanlines(jpeg, (JDIMENSION)top);
    }
    read_rows(jpeg, frame, stride, left, bottom);
    /* Skipping to the very end would leave what is there unread, and its damage unseen. */
    if (bottom + 1 < height) {
        jpeg_skip_scanlines(jpeg, (JDIMENSION)(height - 1 - bottom));
    }
    read_rows(jpeg, frame, stride, left, height);
}

int decode_region(const uint8_t *data, size_t num_bytes, int denominator, region_t needed, uint8_t *frame, int height,
                  int width, decoder_t decoder) {
    scan_t scan; /* its tables are written when they are used: zeroing all of them would take longer */
    struct jpeg_decompress_struct jpeg = {0}; /* so that it can be destroyed though it was not made */
    trouble_t trouble;
    volatile int is_done = 0; /* read behind longjmp */
    scan.bytes = NULL;
    scan.mcus_left = 0;
    jpeg.err = jpeg_std_error(&trouble.manager);
    trouble.manager.error_exit = on_error;
    trouble.manager.emit_message = on_message;
    if (setjmp(trouble.give_up) == 0) {
        jpeg_create_decompress(&jpeg);
        jpeg_mem_src(&jpeg, data, num_bytes);
        jpeg_read_header(&jpeg, TRUE);
        jpeg.out_color_space = JCS_RGB;
        jpeg.scale_num = 1;
        jpeg.scale_denom = (unsigned)denominator;
        jpeg.dct_method = JDCT_ISLOW;
        jpeg.do_fancy_upsampling = TRUE;
        jpeg_start_decompress(&jpeg);
        if (jpeg.output_height == (JDIMENSION)height && jpeg.output_width == (JDIMENSION)width && is_complete(&jpeg)) {
            if (decoder != LIBJPEGS) {
                take_scan(&jpeg, &scan);
            }
            if (decoder == OURS_UNWRITTEN) {
                narrow_scan(&scan, 1, 0);
            }
            read_region(&jpeg, &scan, needed, frame);
            jpeg_finish_decompress(&jpeg);
            is_done = scan.mcus_left == 0;
        }
    }
    jpeg_destroy_decompress(&jpeg);
    drop_scan(&scan);
    return is_done;
}
