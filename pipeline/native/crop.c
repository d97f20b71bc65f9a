/* One augmented sample: what a crop shows of a JPEG is decoded and resized. */
#define _POSIX_C_SOURCE 199309L

#include "kernel.h"

#include <math.h>
#include <time.h>

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The whole pixels that `box` touches, of an image of `height` x `width` that it lies in. */
static region_t touched(box_t box, int height, int width) {
    const int top = (int)floor(box.top), left = (int)floor(box.left);
    const int bottom = (int)fmin(ceil(box.top + box.height), height);
    const int right = (int)fmin(ceil(box.left + box.width), width);
    return (region_t){top, left, bottom - top, right - left};
}

int make_crop(const crop_t *crop, uint8_t *frame, target_t target, tools_t tools, double *decode_s) {
    const region_t seen = touched(crop->box, crop->height, crop->width);
    const double began_s = now_s();
    const int is_decoded = decode_region(crop->jpeg, crop->num_bytes, crop->denominator, seen, frame, crop->height,
                                         crop->width, tools.decoder);
    *decode_s += now_s() - began_s;
    if (!is_decoded) {
        return 0;
    }
    const ptrdiff_t stride = 3 * (ptrdiff_t)crop->width;
    const image_t view = {frame + seen.top * stride + 3 * (ptrdiff_t)seen.left, stride, seen.height, seen.width};
    const box_t box = {crop->box.top - seen.top, crop->box.left - seen.left, crop->box.height, crop->box.width};
    return resize_triangle(view, box, crop->is_mirrored, target, tools.passes);
}
