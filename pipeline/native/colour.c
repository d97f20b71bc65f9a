/* Levels to floats in one pass: by a table; by a colour matrix and its clamp, as C and for AVX2. */
#include "kernel.h"

static inline float clamped(float value, float lower, float upper) {
    value = value > lower ? value : lower;
    return value < upper ? value : upper;
}

static void colour_portable(const uint8_t *pixels, size_t begin, size_t end, colour_t colour, floats_t out) {
    for (size_t i = begin; i < end; i++) {
        const float red = pixels[3 * i], green = pixels[3 * i + 1], blue = pixels[3 * i + 2];
        for (size_t channel = 0; channel < 3; channel++) {
            const float *row = colour.matrix[channel];
            const float sum = row[3] + row[0] * red + row[1] * green + row[2] * blue;
            out.values[i * out.pixel_stride + channel * out.channel_stride] =
                clamped(sum, colour.lower[channel], colour.upper[channel]);
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2_FMA __attribute__((target("avx2,fma")))

enum { PIXELS_A_TURN = 8 };

/* R, G or B of eight pixels. */
AVX2_FMA static inline __m256 channel_of(__m256i pixels, int channel) {
    const __m256i places = _mm256_setr_epi8(0, -1, -1, -1, 3, -1, -1, -1, 6, -1, -1, -1, 9, -1, -1, -1, /* */
                                            4, -1, -1, -1, 7, -1, -1, -1, 10, -1, -1, -1, 13, -1, -1, -1);
    const __m256i shift = _mm256_set1_epi32(channel); /* of the lowest of four bytes; the others stay none */
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(pixels, _mm256_add_epi32(places, shift)));
}

AVX2_FMA static inline __m256 mixed(const colour_t *colour, int channel, __m256 red, __m256 green, __m256 blue) {
    const float *row = colour->matrix[channel];
    __m256 sum = _mm256_fmadd_ps(red, _mm256_set1_ps(row[0]), _mm256_set1_ps(row[3]));
    sum = _mm256_fmadd_ps(green, _mm256_set1_ps(row[1]), sum);
    sum = _mm256_fmadd_ps(blue, _mm256_set1_ps(row[2]), sum);
    sum = _mm256_max_ps(sum, _mm256_set1_ps(colour->lower[channel]));
    return _mm256_min_ps(sum, _mm256_set1_ps(colour->upper[channel]));
}

/* Eight pixels, R, G, B after each other; the halves of a vector hold four of them each. */
AVX2_FMA static inline void store_interleaved(__m256 red, __m256 green, __m256 blue, float *out) {
    const __m256 r0_r3_r2_r1 = _mm256_permute_ps(red, _MM_SHUFFLE(1, 2, 3, 0));
    const __m256 g1_g0_g3_g2 = _mm256_permute_ps(green, _MM_SHUFFLE(2, 3, 0, 1));
    const __m256 b2_b1_b0_b3 = _mm256_permute_ps(blue, _MM_SHUFFLE(3, 0, 1, 2));
    const __m256 first = _mm256_blend_ps(_mm256_blend_ps(r0_r3_r2_r1, g1_g0_g3_g2, 0x22), b2_b1_b0_b3, 0x44);
    const __m256 middle = _mm256_blend_ps(_mm256_blend_ps(r0_r3_r2_r1, g1_g0_g3_g2, 0x99), b2_b1_b0_b3, 0x22);
    const __m256 last = _mm256_blend_ps(_mm256_blend_ps(r0_r3_r2_r1, g1_g0_g3_g2, 0x44), b2_b1_b0_b3, 0x99);
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(first, middle, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(last, first, 0x30));
    _mm256_storeu_ps(out + 16, _mm256_permute2f128_ps(middle, last, 0x31));
}

AVX2_FMA static inline void colour_eight(const uint8_t *pixels, size_t i, const colour_t *colour, floats_t out,
                                         int is_planar) {
    /* Each half begins with four pixels, or ends with them: nothing beyond the eight is read. */
    const __m128i four = _mm_loadu_si128((const __m128i *)(pixels + 3 * i));
    const __m128i others = _mm_loadu_si128((const __m128i *)(pixels + 3 * i + 8));
    const __m256i levels = _mm256_set_m128i(others, four);
    const __m256 red = channel_of(levels, 0), green = channel_of(levels, 1), blue = channel_of(levels, 2);
    const __m256 first = mixed(colour, 0, red, green, blue), second = mixed(colour, 1, red, green, blue);
    const __m256 third = mixed(colour, 2, red, green, blue);
    if (is_planar) {
        _mm256_storeu_ps(out.values + i, first);
        _mm256_storeu_ps(out.values + out.channel_stride + i, second);
        _mm256_storeu_ps(out.values + 2 * out.channel_stride + i, third);
    } else {
        store_interleaved(first, second, third, out.values + 3 * i);
    }
}

/* Returns how many pixels are done. */
AVX2_FMA static inline __attribute__((always_inline)) size_t colour_eights(const uint8_t *pixels, size_t num_pixels,
                                                                           colour_t colour, floats_t out,
                                                                           int is_planar) {
    size_t i = 0;
    for (; i + PIXELS_A_TURN <= num_pixels; i += PIXELS_A_TURN) {
        colour_eight(pixels, i, &colour, out, is_planar);
    }
    return i;
}

AVX2_FMA static size_t colour_avx2(const uint8_t *pixels, size_t num_pixels, const colour_t *colour, floats_t out) {
    return out.pixel_stride == 1 ? colour_eights(pixels, num_pixels, *colour, out, 1)
                                 : colour_eights(pixels, num_pixels, *colour, out, 0);
}

static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
static size_t colour_avx2(const uint8_t *pixels, size_t num_pixels, const colour_t *colour, floats_t out) {
    (void)pixels, (void)num_pixels, (void)colour, (void)out;
    return 0;
}

static int has_avx2(void) { return 0; }
#endif

void colour_pixels(const uint8_t *pixels, size_t num_pixels, const colour_t *colour, floats_t out, int is_portable) {
    const size_t num_done = is_portable || !has_avx2() ? 0 : colour_avx2(pixels, num_pixels, colour, out);
    colour_portable(pixels, num_done, num_pixels, *colour, out);
}

void look_up_pixels(const uint8_t *pixels, size_t num_pixels, const float *table, floats_t out) {
    float *red = out.values, *green = red + out.channel_stride, *blue = green + out.channel_stride;
    for (size_t i = 0; i < num_pixels; i++, pixels += 3) {
        const size_t at = i * out.pixel_stride;
        red[at] = table[3 * pixels[0]];
        green[at] = table[3 * pixels[1] + 1];
        blue[at] = table[3 * pixels[2] + 2];
    }
}
