/* What the files of this extension offer each other. Nothing here knows of Python, and no function keeps a pointer. */
#ifndef HEADRACE_KERNEL_H
#define HEADRACE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

/* A rectangle of whole pixels. */
typedef struct {
    int top, left, height, width;
} region_t;

/* A rectangle in an image, edges and not centres, in parts of pixels. */
typedef struct {
    double top, left, height, width;
} box_t;

/* RGB pixels, 3 bytes each, `stride` bytes from row to row. */
typedef struct {
    const uint8_t *pixels;
    ptrdiff_t stride;
    int height, width;
} image_t;

/* Where resized pixels go: uint8 RGB, or float32 looked up in `table` [256][3]. */
typedef struct {
    void *values;
    const float *table; /* NULL: uint8 */
    int is_planar;      /* float32 as (3, height, width) */
    int height, width;
} target_t;

/* Who reads the Huffman codes of baseline scans, to the same pixels: libjpeg, or entropy.c in its place. OURS_UNWRITTEN
 * is the latter without a store to any block of libjpeg's: all become grey. */
typedef enum { LIBJPEGS, OURS, OURS_UNWRITTEN } decoder_t;

/* Decode `needed` of a JPEG at 1/`denominator` into its place in `frame`, RGB of `height` x `width`, C-contiguous.
 *
 * The whole file is read, so that no damage stays unseen; around `needed` the frame holds anything. Returns 1; or 0 where
 * libjpeg has any error or warning to tell of, or where the region alone would not have the pixels of the whole.
 */
int decode_region(const uint8_t *jpeg, size_t num_bytes, int denominator, region_t needed, uint8_t *frame, int height,
                  int width, decoder_t decoder);

decoder_t best_decoder(void); /* for the libjpeg that is loaded */

/* The taps of one axis: output i is the sum of count[i] inputs from first[i] on, weighted. */
typedef struct {
    int most;         /* the greatest count; in `weights`, where the next output's begin */
    int *first;       /* [outputs] */
    int *count;       /* [outputs], at least 1 */
    int16_t *weights; /* [outputs][most], each output's sum is ONE; 0 behind its count */
} taps_t;

enum { WEIGHT_BITS = 14, ONE = 1 << WEIGHT_BITS, HALF = ONE >> 1 };

/* What the processor offers for the two passes. Every set of them gives the same bytes. */
typedef struct {
    /* out[i] = sum over k of weights[k] * rows[k * stride + i], for i < num_bytes. */
    void (*blend_rows)(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int count, uint8_t *out,
                       size_t num_bytes);
    /* Pixel i of `out` from pixels taps.first[i] on of `row`, of which slack_of(taps) bytes beyond its end may be read. */
    void (*blend_columns)(const uint8_t *row, const taps_t *taps, int num_outputs, uint8_t *out);
} passes_t;

enum { TAPS_A_GROUP = 4 };

static inline size_t slack_of(const taps_t *taps) { return 3 * (size_t)taps->most + 16; }

const passes_t *best_passes(void); /* for this processor */
extern const passes_t portable_passes; /* for any */

/* Resize `box` of `image` by a triangle filter as wide as the shrink factor, mirrored left to right if so wanted.
 *
 * Returns 1; 0 where memory is missing. The caller has checked that `box` lies in `image` and all sizes are positive.
 */
int resize_triangle(image_t image, box_t box, int is_mirrored, target_t target, const passes_t *passes);

/* The next application segment 1 of a JPEG's header from `*position` on, 2 at first: from `*start` to before `*stop`,
 * which may lie beyond the file. Returns whether there is one; `*position` is behind it then.
 */
int next_app1(const uint8_t *jpeg, size_t num_bytes, size_t *position, size_t *start, size_t *stop);

/* A sample to be made: `box` of a JPEG decoded at 1/`denominator`, which then is `height` x `width`. */
typedef struct {
    const uint8_t *jpeg;
    size_t num_bytes;
    int denominator, height, width;
    box_t box;
    int is_mirrored;
} crop_t;

/* By what it is made. */
typedef struct {
    decoder_t decoder;
    const passes_t *passes;
} tools_t;

/* Decode what a crop shows into `frame`, which has room for the whole, and resize it; it ends at its edges, as if it
 * had been cut out first.
 *
 * Returns 1; 0 where `decode_region` gives 0 or memory is missing. The time of decoding is added to `decode_s`. The
 * caller has checked that the box lies in the image and all sizes are positive.
 */
int make_crop(const crop_t *crop, uint8_t *frame, target_t target, tools_t tools, double *decode_s);

/* What becomes of levels R, G, B and a 1: three sums by `matrix`, clamped.
 *
 * Every product with a level and every sum of them is exact in float32, so that neither their order nor a fused
 * multiply-add shows in the results.
 */
typedef struct {
    float matrix[3][4], lower[3], upper[3];
} colour_t;

/* Where floats of pixels go: (H, W, 3), or planes. */
typedef struct {
    float *values;
    size_t pixel_stride, channel_stride; /* in floats; 3 and 1, or 1 and H * W */
} floats_t;

/* By this processor's best way, or by the one for any. */
void colour_pixels(const uint8_t *pixels, size_t num_pixels, const colour_t *colour, floats_t out, int is_portable);

/* Each level of R, G and B by its entry of `table` [256][3]. */
void look_up_pixels(const uint8_t *pixels, size_t num_pixels, const float *table, floats_t out);

#endif
