/* Huffman decoding of sound baseline scans, in place of libjpeg's. */
#ifndef HEADRACE_ENTROPY_H
#define HEADRACE_ENTROPY_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jpeglib.h>

enum { LOOKED_AT = 10 }; /* bits; longer codes take a loop */

/* What the next bits of a scan begin with: a code and its value, or two of them. 0: longer than they can tell. */
typedef uint32_t code_t;

typedef struct {
    code_t codes[1 << LOOKED_AT];
    code_t pairs[1 << LOOKED_AT]; /* of AC: two at once where both are known, for what is passed over */
    int32_t past[18];     /* the first code of each length that is none of that length, aligned to 16 bits */
    int32_t offset[17];   /* of values by length */
    const uint8_t *values;
} table_t;

/* What comes next of a scan: kept in registers while a block is decoded, whatever is stored to it. */
typedef struct {
    uint64_t bits;     /* before `next`, the next one at the top */
    unsigned num_bits; /* of them that are still to be used */
    const uint8_t *next;
} reader_t;

/* The state of one scan; `client_data` of its decompressor while it is decoded. */
typedef struct {
    uint8_t *bytes;              /* of the scan without stuffing, and zeros behind them; see `drop_scan` */
    const uint8_t *end;          /* of those that the file has */
    reader_t reader;
    const uint8_t *marker;       /* where the file goes on behind the scan */
    long mcus_left;              /* 0 when all are decoded, or where libjpeg decodes them */
    long column, num_columns;       /* of MCUs: the one that comes next */
    long first_column, last_column; /* those that pixels are wanted of */
    int last_dc[MAX_COMPS_IN_SCAN];
    int num_blocks;
    struct {
        const table_t *dc, *ac;
        int component;
    } blocks[D_MAX_BLOCKS_IN_MCU];
    table_t tables[2][NUM_HUFF_TBLS]; /* of DC, of AC */
} scan_t;

/* Let `scan` decode what `jpeg`, started, has not read yet; where that is no plain baseline scan nothing changes.
 *
 * `scan->bytes` is NULL; `drop_scan` frees what becomes of it, also after an error. Whatever is not as the standard has it ends
 * in the decompressor's `error_exit`, also what libjpeg would only warn of.
 */
void take_scan(struct jpeg_decompress_struct *jpeg, scan_t *scan);
/* Pass over what is left of column `first` of MCUs, and right of `last`. */
void narrow_scan(scan_t *scan, long first, long last);

void drop_scan(scan_t *scan);

#endif
