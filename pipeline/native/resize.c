/* Antialiased resizing by a triangle filter, in fixed point: rows are blended first, then columns. */
#include "kernel.h"

#include <math.h>
#include <stdlib.h>

/* The taps of `num_outputs` pixels that cover [begin, begin + extent) of `num_inputs`, as Pillow places them. */
typedef struct {
    double begin, extent;
    int num_inputs, num_outputs, is_mirrored;
} axis_t;

static void free_taps(taps_t *taps) {
    free(taps->first);
    free(taps->count);
    free(taps->weights);
}

/* Weights of output `i` in fixed point; what rounding leaves of their sum is given to the greatest. */
static void weigh(taps_t *taps, int i, double center, double width) {
    int16_t *weights = taps->weights + (size_t)i * taps->most;
    const int count = taps->count[i];
    double sum = 0;
    for (int k = 0; k < count; k++) {
        sum += fmax(0, 1 - fabs((taps->first[i] + k + 0.5 - center) / width));
    }
    int left = ONE, heaviest = 0;
    for (int k = 0; k < count; k++) {
        const double weight = fmax(0, 1 - fabs((taps->first[i] + k + 0.5 - center) / width));
        weights[k] = (int16_t)lrint(weight / sum * ONE);
        left -= weights[k];
        heaviest = weights[k] > weights[heaviest] ? k : heaviest;
    }
    weights[heaviest] = (int16_t)(weights[heaviest] + left);
}

static int make_taps(taps_t *taps, axis_t axis) {
    const double pitch = axis.extent / axis.num_outputs, width = fmax(pitch, 1);
    const int groups = ((int)ceil(2 * width) + 1 + TAPS_A_GROUP - 1) / TAPS_A_GROUP;
    taps->most = groups * TAPS_A_GROUP;
    taps->first = malloc((size_t)axis.num_outputs * sizeof *taps->first);
    taps->count = malloc((size_t)axis.num_outputs * sizeof *taps->count);
    taps->weights = calloc((size_t)axis.num_outputs * taps->most, sizeof *taps->weights);
    if (taps->first == NULL || taps->count == NULL || taps->weights == NULL) {
        return 0;
    }
    for (int i = 0; i < axis.num_outputs; i++) {
        const int place = axis.is_mirrored ? axis.num_outputs - 1 - i : i;
        const double center = axis.begin + (place + 0.5) * pitch;
        const int first = (int)fmin(fmax(center - width + 0.5, 0), axis.num_inputs - 1);
        const int end = (int)fmin(center + width + 0.5, axis.num_inputs);
        taps->first[i] = first;
        taps->count[i] = end > first ? end - first : 1;
        weigh(taps, i, center, width);
    }
    return 1;
}

/* One finished row of RGB bytes into its place. */
static void deliver(target_t target, int y, const uint8_t *row) {
    const float *table = target.table;
    if (!target.is_planar) {
        float *out = (float *)target.values + (size_t)y * target.width * 3;
        for (int i = 0; i < 3 * target.width; i += 3) {
            out[i] = table[3 * row[i]];
            out[i + 1] = table[3 * row[i + 1] + 1];
            out[i + 2] = table[3 * row[i + 2] + 2];
        }
        return;
    }
    for (int channel = 0; channel < 3; channel++) {
        float *out = (float *)target.values + ((size_t)channel * target.height + y) * target.width;
        for (int x = 0; x < target.width; x++) {
            out[x] = table[3 * row[3 * x + channel] + channel];
        }
    }
}

/* The first and the last input that any output uses: [begin, end). */
static void span(const taps_t *taps, int num_outputs, int *begin, int *end) {
    *begin = taps->first[0];
    *end = 0;
    for (int i = 0; i < num_outputs; i++) {
        *begin = taps->first[i] < *begin ? taps->first[i] : *begin;
        *end = taps->first[i] + taps->count[i] > *end ? taps->first[i] + taps->count[i] : *end;
    }
}

static void run_passes(const passes_t *passes, image_t image, taps_t rows, taps_t columns, target_t target,
                       uint8_t *blended) {
    int begin, end;
    span(&columns, target.width, &begin, &end);
    const size_t num_bytes = (size_t)(end - begin) * 3;
    uint8_t *finished = blended + num_bytes + slack_of(&columns);
    for (int i = 0; i < target.width; i++) {
        columns.first[i] -= begin;
    }
    for (int y = 0; y < target.height; y++) {
        const uint8_t *source = image.pixels + rows.first[y] * image.stride + (ptrdiff_t)begin * 3;
        const int16_t *weights = rows.weights + (size_t)y * rows.most;
        passes->blend_rows(source, image.stride, weights, rows.count[y], blended, num_bytes);
        if (target.table == NULL) {
            finished = (uint8_t *)target.values + (size_t)y * target.width * 3;
        }
        passes->blend_columns(blended, &columns, target.width, finished);
        if (target.table != NULL) {
            deliver(target, y, finished);
        }
    }
}

int resize_triangle(image_t image, box_t box, int is_mirrored, target_t target, const passes_t *passes) {
    const axis_t down = {box.top, box.height, image.height, target.height, 0};
    const axis_t across = {box.left, box.width, image.width, target.width, is_mirrored};
    taps_t rows = {0}, columns = {0};
    uint8_t *room = NULL;
    if (make_taps(&rows, down) && make_taps(&columns, across)) {
        room = calloc(1, ((size_t)image.width + target.width) * 3 + slack_of(&columns));
    }
    const int has_memory = room != NULL;
    if (has_memory) {
        run_passes(passes, image, rows, columns, target, room);
    }
    free_taps(&rows);
    free_taps(&columns);
    free(room);
    return has_memory;
}
