/* The two passes of a resize, as C and for AVX2. Sums are whole numbers: every processor gives the same bytes. */
#include "kernel.h"

#include <string.h>

static uint8_t rounded(int sum) { return (uint8_t)((sum + HALF) >> WEIGHT_BITS); }

static void blend_rows_portable(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int count, uint8_t *out,
                                size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i++) {
        int sum = 0;
        for (int k = 0; k < count; k++) {
            sum += weights[k] * rows[k * stride + (ptrdiff_t)i];
        }
        out[i] = rounded(sum);
    }
}

static void blend_columns_portable(const uint8_t *row, const taps_t *taps, int num_outputs, uint8_t *out) {
    for (int i = 0; i < num_outputs; i++) {
        const uint8_t *pixel = row + (size_t)taps->first[i] * 3;
        const int16_t *weights = taps->weights + (size_t)i * taps->most;
        int red = 0, green = 0, blue = 0;
        for (int k = 0; k < taps->count[i]; k++, pixel += 3) {
            red += weights[k] * pixel[0];
            green += weights[k] * pixel[1];
            blue += weights[k] * pixel[2];
        }
        out[3 * i] = rounded(red);
        out[3 * i + 1] = rounded(green);
        out[3 * i + 2] = rounded(blue);
    }
}

const passes_t portable_passes = {blend_rows_portable, blend_columns_portable};

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

/* Two weights as a vector multiplies pairs of rows by them. */
AVX2 static __m256i pair_of(const int16_t *weights, int k, int count) {
    const uint32_t second = k + 1 < count ? (uint16_t)weights[k + 1] : 0;
    return _mm256_set1_epi32((int)((uint16_t)weights[k] | second << 16));
}

/* 32 bytes of a row. */
AVX2 static void blend_32(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int count, uint8_t *out) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i sums[4];
    for (int part = 0; part < 4; part++) {
        sums[part] = _mm256_set1_epi32(HALF);
    }
    for (int k = 0; k < count; k += 2, rows += 2 * stride) {
        const __m256i pair = pair_of(weights, k, count);
        const __m256i one = _mm256_loadu_si256((const __m256i *)rows);
        const __m256i other = k + 1 < count ? _mm256_loadu_si256((const __m256i *)(rows + stride)) : zero;
        const __m256i low = _mm256_unpacklo_epi8(one, other), high = _mm256_unpackhi_epi8(one, other);
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), pair));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), pair));
        sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), pair));
        sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), pair));
    }
    for (int part = 0; part < 4; part++) {
        sums[part] = _mm256_srli_epi32(sums[part], WEIGHT_BITS);
    }
    const __m256i low = _mm256_packus_epi32(sums[0], sums[1]), high = _mm256_packus_epi32(sums[2], sums[3]);
    _mm256_storeu_si256((__m256i *)out, _mm256_packus_epi16(low, high));
}

AVX2 static void blend_rows_avx2(const uint8_t *rows, ptrdiff_t stride, const int16_t *weights, int count, uint8_t *out,
                                 size_t num_bytes) {
    if (num_bytes < 32) {
        blend_rows_portable(rows, stride, weights, count, out, num_bytes);
        return;
    }
    for (size_t i = 0; i + 32 <= num_bytes; i += 32) {
        blend_32(rows + i, stride, weights, count, out + i);
    }
    blend_32(rows + num_bytes - 32, stride, weights, count, out + num_bytes - 32); /* the rest, and some again */
}

/* R, G, B of one pixel by four taps a turn, each in two sums: R, R, G, G in the lower half, B, B in the upper. */
AVX2 static inline __m256i blend_pixel(const uint8_t *pixel, const int16_t *weights, int groups) {
    const __m256i by_channel =
        _mm256_setr_epi8(0, -1, 3, -1, 6, -1, 9, -1, 1, -1, 4, -1, 7, -1, 10, -1, /* */
                         2, -1, 5, -1, 8, -1, 11, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i sums = _mm256_setzero_si256();
    for (int group = 0; group < groups; group++, pixel += 3 * TAPS_A_GROUP, weights += TAPS_A_GROUP) {
        const __m256i pixels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel));
        const __m256i four = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i *)weights));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, by_channel), four));
    }
    return sums;
}

AVX2 static inline __m256i rounded_sums(__m256i one, __m256i other) {
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_hadd_epi32(one, other), _mm256_set1_epi32(HALF)), WEIGHT_BITS);
}

/* Four pixels from output `i` on: 12 bytes, and 4 of nothing. */
AVX2 static inline __m128i blend_four(const uint8_t *row, const taps_t *taps, int i, int groups) {
    const __m256i into_place =
        _mm256_setr_epi8(0, 1, -1, 2, 3, -1, 4, 5, -1, 6, 7, -1, -1, -1, -1, -1, /* */
                         -1, -1, 0, -1, -1, 2, -1, -1, 4, -1, -1, 6, -1, -1, -1, -1);
    const int16_t *weights = taps->weights + (size_t)i * taps->most;
    __m256i sums[4];
    for (int next = 0; next < 4; next++) {
        sums[next] = blend_pixel(row + (size_t)taps->first[i + next] * 3, weights + (size_t)next * taps->most, groups);
    }
    const __m256i levels = _mm256_packus_epi32(rounded_sums(sums[0], sums[1]), rounded_sums(sums[2], sums[3]));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(levels, levels), into_place);
    return _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}

AVX2 static inline __attribute__((always_inline)) void blend_fours(const uint8_t *row, const taps_t *taps,
                                                                   int num_outputs, uint8_t *out, int groups) {
    for (int i = 0; i + 4 <= num_outputs; i += 4) {
        const __m128i four = blend_four(row, taps, i, groups);
        const int last = _mm_extract_epi32(four, 2);
        _mm_storel_epi64((__m128i *)(out + 3 * i), four);
        memcpy(out + 3 * i + 8, &last, sizeof last);
    }
}

AVX2 static void blend_columns_avx2(const uint8_t *row, const taps_t *taps, int num_outputs, uint8_t *out) {
    const int groups = taps->most / TAPS_A_GROUP, rest = num_outputs % 4;
    if (groups == 1) { /* most crops; a loop of a known length is no loop */
        blend_fours(row, taps, num_outputs, out, 1);
    } else {
        blend_fours(row, taps, num_outputs, out, groups);
    }
    if (rest > 0 && num_outputs >= 4) { /* the last ones, and some again */
        uint8_t four[16];
        _mm_storeu_si128((__m128i *)four, blend_four(row, taps, num_outputs - 4, groups));
        memcpy(out + 3 * (num_outputs - 4), four, 12);
    } else if (rest > 0) {
        blend_columns_portable(row, taps, num_outputs, out);
    }
}

static const passes_t avx2_passes = {blend_rows_avx2, blend_columns_avx2};

const passes_t *best_passes(void) { return __builtin_cpu_supports("avx2") ? &avx2_passes : &portable_passes; }
#else
const passes_t *best_passes(void) { return &portable_passes; }
#endif
