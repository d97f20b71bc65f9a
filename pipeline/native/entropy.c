/* Huffman decoding takes more than half of a JPEG's time in libjpeg. Here one look at a table finds code and value. */
#include "entropy.h"

#include <stdlib.h>
#include <string.h>

/* A code has 16 bits at most and a value 15, so that a block of damaged ones ends within BLOCK_BYTES. */
enum { RUN_ENDS = 128, BLOCK_BYTES = 256 };

/* The head of libjpeg's own struct, which no public header has. It is this in jpegint.h of libjpeg-turbo 2.0 and of 3.2,
 * where more follows; the tests passed with the libraries 2.1.5 and 3.2.0. Of the one loaded, probe.c makes sure. */
struct jpeg_entropy_decoder {
    void (*start_pass)(j_decompress_ptr jpeg);
    boolean (*decode_mcu)(j_decompress_ptr jpeg, JBLOCKROW *blocks);
};

/* Where the coefficients of a scan stand in a block; runs beyond its end are refused before. */
static const uint8_t natural_order[DCTSIZE2] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* The parts of a code_t. */
static inline unsigned num_bits_of(code_t code) { return code & 63; }        /* of code and value */
static inline unsigned value_bits_of(code_t code) { return code >> 8 & 15; } /* that follow the code */
static inline unsigned code_bits_of(code_t code) { return code >> 16 & 31; } /* without the value */
static inline unsigned run_of(code_t code) { return code >> 24; }            /* zeros before the coefficient */

static code_t code_of(unsigned length, unsigned value, int is_ac) {
    const unsigned size = is_ac ? value & 15 : value, run = is_ac ? value >> 4 : 0;
    const int is_end = is_ac && size == 0 && run != 15;
    return (length + size) | size << 8 | length << 16 | (is_end ? RUN_ENDS : run) << 24;
}

/* Of one or two codes, how many places of the block they take; RUN_ENDS more where the last one ends it. */
static inline unsigned places_of(code_t codes) { return codes >> 24; }

static inline unsigned places_after(code_t code) { return run_of(code) + (run_of(code) != RUN_ENDS); }

static void make_pairs(table_t *table) {
    const unsigned mask = (1 << LOOKED_AT) - 1;
    for (unsigned bits = 0; bits <= mask; bits++) {
        const code_t first = table->codes[bits], second = table->codes[bits << num_bits_of(first) & mask];
        const int are_two = run_of(first) != RUN_ENDS && second != 0 &&
                            num_bits_of(first) + code_bits_of(second) <= LOOKED_AT;
        const unsigned num_bits = num_bits_of(first) + (are_two ? num_bits_of(second) : 0);
        const unsigned places = places_after(first) + (are_two ? places_after(second) : 0);
        table->pairs[bits] = first != 0 ? num_bits | places << 24 : 0;
    }
}

/* libjpeg has checked `source` when it started: its codes fit into 16 bits, values of DC are 15 at most. */
static void make_table(table_t *table, const JHUFF_TBL *source, int is_ac) {
    int32_t code = 0;
    int index = 0;
    memset(table->codes, 0, sizeof table->codes);
    table->values = source->huffval;
    for (int length = 1; length <= 16; length++) {
        table->offset[length] = index - code;
        for (int i = 0; i < source->bits[length]; i++, code++, index++) {
            if (length <= LOOKED_AT) {
                code_t *first = table->codes + ((size_t)code << (LOOKED_AT - length));
                const code_t entry = code_of(length, source->huffval[index], is_ac);
                for (int k = 0; k < 1 << (LOOKED_AT - length); k++) {
                    first[k] = entry;
                }
            }
        }
        table->past[length] = code << (16 - length);
        code <<= 1;
    }
    if (is_ac) {
        make_pairs(table);
    }
}

__attribute__((noreturn, cold)) static void give_up(j_decompress_ptr jpeg) {
    jpeg->err->error_exit((j_common_ptr)jpeg);
    abort(); /* error_exit does not return */
}

/* Copy the scan from `source` to `end` without the zeros stuffed behind each 0xFF; returns where its marker is. */
static const uint8_t *unstuff(j_decompress_ptr jpeg, scan_t *scan, const uint8_t *source, const uint8_t *end) {
    uint8_t *out = scan->bytes = malloc((size_t)(end - source) + BLOCK_BYTES);
    if (out == NULL) {
        give_up(jpeg);
    }
    for (;;) {
        const uint8_t *stop = memchr(source, 0xFF, (size_t)(end - source));
        if (stop == NULL || stop + 1 == end) {
            give_up(jpeg);
        }
        memcpy(out, source, (size_t)(stop - source));
        out += stop - source;
        if (stop[1] != 0) {
            memset(out, 0, BLOCK_BYTES);
            scan->end = out;
            return stop;
        }
        *out++ = 0xFF;
        source = stop + 2;
    }
}

/* Have 56 bits or more. */
static inline void fill(reader_t *reader) {
    uint64_t word;
    memcpy(&word, reader->next, sizeof word);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    reader->bits |= word >> reader->num_bits; /* also parts of bytes that come again, as the same bits */
    reader->next += (63 - reader->num_bits) >> 3;
    reader->num_bits |= 56;
}

static inline void pass(reader_t *reader, unsigned num_bits) {
    reader->bits <<= num_bits;
    reader->num_bits -= num_bits;
}

static inline code_t look(const code_t *codes, const reader_t *reader) {
    return codes[reader->bits >> (64 - LOOKED_AT)];
}

/* A code that is longer than a look reaches. */
__attribute__((noinline)) static code_t long_code(j_decompress_ptr jpeg, const table_t *table, uint64_t bits,
                                                  int is_ac) {
    const int32_t next = (int32_t)(bits >> 48);
    unsigned length = LOOKED_AT + 1;
    while (length <= 16 && next >= table->past[length]) {
        length++;
    }
    if (length > 16) {
        give_up(jpeg);
    }
    return code_of(length, table->values[table->offset[length] + (next >> (16 - length))], is_ac);
}

/* The value behind a code: of n bits the upper half of the numbers is positive. */
static inline int value_of(uint64_t bits, code_t code) {
    const uint64_t rest = bits << code_bits_of(code);
    const int value = (int)(rest >> 1 >> (63 - value_bits_of(code)));
    const int is_negative = (int)~((int64_t)rest >> 63);
    return value + (is_negative & (1 - (1 << value_bits_of(code))));
}

static inline code_t code_at(j_decompress_ptr jpeg, const table_t *table, const reader_t *reader, int is_ac) {
    const code_t code = look(table->codes, reader);
    return code != 0 ? code : long_code(jpeg, table, reader->bits, is_ac);
}

static inline int decode_dc(j_decompress_ptr jpeg, const table_t *table, reader_t *reader) {
    fill(reader);
    const code_t code = code_at(jpeg, table, reader, 0);
    const int difference = value_of(reader->bits, code);
    pass(reader, num_bits_of(code));
    return difference;
}

/* What a block has behind its first coefficient, into `block`; returns the place behind it, RUN_ENDS more if told so. */
static inline unsigned decode_ac(j_decompress_ptr jpeg, const table_t *table, reader_t *reader, JCOEF *block) {
    unsigned k = 1;
    do {
        code_t code = look(table->codes, reader); /* of bits that are there, while `fill` waits for others */
        fill(reader);
        code = code != 0 ? code : long_code(jpeg, table, reader->bits, 1);
        k += run_of(code);
        if (k < DCTSIZE2) {
            block[natural_order[k]] = (JCOEF)value_of(reader->bits, code); /* of a run of 16 zeros, 0 */
        }
        pass(reader, num_bits_of(code)); /* 31 at most, so that more are left than a look needs */
    } while (++k < DCTSIZE2);
    return k;
}

/* The same for a block that is not wanted. */
static inline unsigned skip_ac(j_decompress_ptr jpeg, const table_t *table, reader_t *reader) {
    unsigned k = 1;
    do {
        code_t code = look(table->pairs, reader);
        fill(reader);
        if (code != 0 && k + places_of(code) % RUN_ENDS < DCTSIZE2) { /* all of it belongs to this block */
            k += places_of(code);
        } else {
            code = code_at(jpeg, table, reader, 1);
            k += run_of(code) + 1;
        }
        pass(reader, num_bits_of(code));
    } while (k < DCTSIZE2);
    return k;
}

/* What comes next in `scan`, into `block` if there is one. */
static inline __attribute__((always_inline)) void decode_block(j_decompress_ptr jpeg, scan_t *scan, int number,
                                                               JCOEF *block) {
    reader_t reader = scan->reader;
    const int dc = scan->last_dc[scan->blocks[number].component] += decode_dc(jpeg, scan->blocks[number].dc, &reader);
    if (dc != (JCOEF)dc) {
        give_up(jpeg);
    }
    const table_t *ac = scan->blocks[number].ac;
    unsigned k;
    if (block != NULL) {
        block[0] = (JCOEF)dc;
        k = decode_ac(jpeg, ac, &reader, block);
    } else {
        k = skip_ac(jpeg, ac, &reader);
    }
    scan->reader = reader;
    if ((k > DCTSIZE2 && k < RUN_ENDS) || reader.next - scan->end > (ptrdiff_t)reader.num_bits / 8) {
        give_up(jpeg); /* beyond the block's end, or the scan's */
    }
}

/* Behind the last block less than a byte may be left before the marker, which libjpeg reads next. */
static void end_scan(j_decompress_ptr jpeg, const scan_t *scan) {
    if ((scan->end - scan->reader.next) * 8 + (ptrdiff_t)scan->reader.num_bits >= 8) {
        give_up(jpeg);
    }
    jpeg->src->bytes_in_buffer -= (size_t)(scan->marker - jpeg->src->next_input_byte);
    jpeg->src->next_input_byte = scan->marker;
}

#if defined(__x86_64__)
__attribute__((target_clones("bmi2", "default"))) /* for shifts by any register */
#endif
static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks) {
    scan_t *scan = jpeg->client_data;
    const int is_wanted = blocks != NULL && scan->column >= scan->first_column && scan->column <= scan->last_column;
    scan->column = scan->column + 1 < scan->num_columns ? scan->column + 1 : 0;
    for (int i = 0; i < scan->num_blocks; i++) {
        if (is_wanted) {
            decode_block(jpeg, scan, i, blocks[i][0]);
        } else {
            decode_block(jpeg, scan, i, NULL);
        }
    }
    if (--scan->mcus_left == 0) {
        end_scan(jpeg, scan);
    }
    return TRUE;
}

void take_scan(struct jpeg_decompress_struct *jpeg, scan_t *scan) {
    /* libjpeg-turbo 3 decodes lossless files, too, which have no AC tables; of baseline ones it wants 0 and 63 here. */
    const int is_lossless = jpeg->Ss != 0 || jpeg->Se != DCTSIZE2 - 1;
    if (is_lossless || jpeg->progressive_mode || jpeg->arith_code || jpeg->restart_interval != 0 ||
        jpeg->data_precision != 8 || jpeg_has_multiple_scans(jpeg)) {
        return;
    }
    const uint8_t *begin = jpeg->src->next_input_byte;
    scan->marker = unstuff(jpeg, scan, begin, begin + jpeg->src->bytes_in_buffer);
    scan->reader = (reader_t){.next = scan->bytes};
    scan->column = 0;
    scan->num_columns = (long)jpeg->MCUs_per_row;
    narrow_scan(scan, 0, scan->num_columns - 1);
    scan->mcus_left = (long)jpeg->MCUs_per_row * (long)jpeg->MCU_rows_in_scan;
    memset(scan->last_dc, 0, sizeof scan->last_dc);
    for (int i = 0; i < jpeg->comps_in_scan; i++) {
        const jpeg_component_info *component = jpeg->cur_comp_info[i];
        make_table(&scan->tables[0][component->dc_tbl_no], jpeg->dc_huff_tbl_ptrs[component->dc_tbl_no], 0);
        make_table(&scan->tables[1][component->ac_tbl_no], jpeg->ac_huff_tbl_ptrs[component->ac_tbl_no], 1);
    }
    scan->num_blocks = jpeg->blocks_in_MCU;
    for (int i = 0; i < jpeg->blocks_in_MCU; i++) {
        const int component = jpeg->MCU_membership[i];
        scan->blocks[i].component = component;
        scan->blocks[i].dc = &scan->tables[0][jpeg->cur_comp_info[component]->dc_tbl_no];
        scan->blocks[i].ac = &scan->tables[1][jpeg->cur_comp_info[component]->ac_tbl_no];
    }
    jpeg->client_data = scan;
    jpeg->entropy->decode_mcu = decode_mcu;
}

void narrow_scan(scan_t *scan, long first, long last) {
    scan->first_column = first;
    scan->last_column = last;
}

void drop_scan(scan_t *scan) {
    free(scan->bytes);
    scan->bytes = NULL;
}
