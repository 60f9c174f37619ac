/* Runtime of the integer networks that "nbsnn export --format c" writes: C99, no allocation, no library.
 *
 * A network is a table of nodes over one block of memory. Each neuron of a unit has the count of its spikes,
 *
 *     count = clip((2^(F-1) + T * (bias + constant) + sum of gain * acc) >> F, 0, levels),
 *
 * where acc is a convolution of counts with integer weights. All numbers are integers but those of the heads, which are
 * bias + sum of acc * scale in double. Values are stored with the channels of a place side by side. */
#ifndef NBSNN_RUNTIME_H
#define NBSNN_RUNTIME_H
#include <float.h>
#include <stdint.h>
#include <string.h>

#if DBL_MANT_DIG != 53
#error "heads need a double of 53 bits; on AVR, for instance, it has 24: give the compiler -mdouble=64"
#endif

enum { NBSNN_U8, NBSNN_I32, NBSNN_I64 }; /* how the elements of a value are stored */
enum { NBSNN_UNIT, NBSNN_SUM, NBSNN_MAX, NBSNN_MIN, NBSNN_FLATTEN };
enum { NBSNN_SKIP = 0, NBSNN_TERNARY = 1 }; /* else bits of a weight: 2 to 7 with a table of values, 8 or 16 without */

typedef struct {
    uint32_t offset; /* in memory */
    int32_t channels, rows, columns;
    uint8_t kind, constant; /* constant in time: the image, and pools of it */
} nbsnn_value;

/* Read k of place i along an axis is index[k * places + i], or i * stride + start + k * step; nothing outside of the source. */
typedef struct {
    int32_t places, reads, stride, start, step;
    const int32_t *index;
    const int16_t *weight; /* NULL: 1 for each */
} nbsnn_axis;

typedef struct { const int32_t *narrow; const int64_t *wide; } nbsnn_numbers; /* one of them, the other is NULL */

typedef struct {
    nbsnn_value source;
    const uint8_t *weight; /* row after row, [kernel rows, kernel columns, channels of the group] */
    const int16_t *values; /* of the codes */
    uint8_t bits, shift;   /* shift: bits that the product with a constant is rounded off by */
    int32_t outputs, groups, row, row_bytes;
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    const nbsnn_axis *after; /* rows and columns of a map behind the convolution, whose result has these places */
    int32_t places[2];
    nbsnn_numbers gain;  /* of a unit, for each channel */
    const double *scale; /* of a head */
} nbsnn_branch;

typedef struct {
    uint8_t type, fraction_bits;
    int32_t levels, branch_count;
    nbsnn_value source, result;
    const nbsnn_branch *branches;
    nbsnn_numbers bias;      /* for each channel, or for each element [channels, rows, columns] */
    const double *head_bias; /* of a head */
    uint8_t bias_per_element;
    const nbsnn_axis *axes; /* of sums, maxima and minima: rows and columns */
} nbsnn_node;

/* Element i of an output has part gain[i] * numbers[first + index[i]], nothing if index[i] is -1; NULL: 1 and i. */
typedef struct { uint32_t first; const int32_t *index; const double *gain; } nbsnn_part;
typedef struct { int32_t size, part_count; const nbsnn_part *parts; const double *shift; /* NULL: 0 */ } nbsnn_output;

typedef struct {
    int32_t timesteps, node_count, head_count, output_count;
    nbsnn_value image;
    int32_t low, high;    /* of an image as integers */
    const int32_t *table; /* [channels, 256] of 8-bit pixels, or NULL */
    const nbsnn_node *nodes, *heads;
    const nbsnn_output *outputs;
} nbsnn_network;

static inline int64_t nbsnn_number(nbsnn_numbers n, int i) { return n.wide ? n.wide[i] : n.narrow[i]; }
/* v / 2^shift, rounded down also if v is negative. */
static inline int64_t nbsnn_shifted(int64_t v, int shift) { return v >= 0 ? v >> shift : ~(~v >> shift); }

static inline int64_t nbsnn_get(const uint8_t *ram, const nbsnn_value *v, int32_t element)
{
    const uint8_t *at = ram + v->offset;
    int32_t narrow = 0;
    int64_t wide = 0;
    if (v->kind == NBSNN_U8) return at[element];
    if (v->kind == NBSNN_I32) memcpy(&narrow, at + 4 * (size_t)element, 4);
    else memcpy(&wide, at + 8 * (size_t)element, 8);
    return narrow + wide;
}

static inline void nbsnn_put(uint8_t *ram, const nbsnn_value *v, int32_t element, int64_t number)
{
    uint8_t *at = ram + v->offset;
    int32_t narrow = (int32_t)number; /* fits where it is used */
    if (v->kind == NBSNN_U8) at[element] = (uint8_t)number;
    else if (v->kind == NBSNN_I32) memcpy(at + 4 * (size_t)element, &narrow, 4);
    else memcpy(at + 8 * (size_t)element, &number, 8);
}

static inline int32_t nbsnn_element(const nbsnn_value *v, int channel, int y, int x)
{
    return (y * v->columns + x) * v->channels + channel;
}

/* The place that read k of place i is from, negative for nothing. */
static inline int32_t nbsnn_place(const nbsnn_axis *axis, int i, int k, int32_t size)
{
    int32_t place = axis->index ? axis->index[k * axis->places + i] : i * axis->stride + axis->start + k * axis->step;
    return place < size ? place : -1;
}
static inline int64_t nbsnn_factor(const nbsnn_axis *a, int i, int k) { return a->weight ? a->weight[k * a->places + i] : 1; }

/* The weights of one output channel. */
static inline void nbsnn_unpack(const nbsnn_branch *b, int output, int16_t *row)
{
    const uint8_t *packed = b->weight + (size_t)output * (size_t)b->row_bytes;
    uint32_t bits = b->bits, held = 0, code = 0, mask = (1u << bits) - 1u;
    for (int i = 0; i < b->row; i++) {
        if (bits == 8) row[i] = (int16_t)((packed[i] ^ 128) - 128);
        else if (bits == 16) row[i] = (int16_t)(((packed[2 * i] | packed[2 * i + 1] << 8) ^ 32768) - 32768);
        else if (bits == NBSNN_TERNARY) {
            if (i % 5 == 0) code = *packed++;
            row[i] = b->values[code % 3];
            code /= 3;
        } else {
            if (held < bits) code |= (uint32_t)*packed++ << held, held += 8;
            row[i] = b->values[code & mask];
            code >>= bits;
            held -= bits;
        }
    }
}

static inline int64_t nbsnn_dot(const uint8_t *ram, const nbsnn_value *v, int32_t first, const int16_t *weight, int32_t n)
{
    const uint8_t *x = ram + v->offset + first;
    int64_t wide = 0;
    int32_t sum = 0;
    if (v->kind != NBSNN_U8) for (int i = 0; i < n; i++) wide += weight[i] * nbsnn_get(ram, v, first + i);
    else for (int i = 0; i < n; i++) sum += weight[i] * x[i];
    return sum + wide;
}

/* One place of a branch's convolution. */
static inline int64_t nbsnn_convolve(const uint8_t *ram, const nbsnn_branch *b, const int16_t *weight, int o, int y, int x)
{
    const nbsnn_value *v = &b->source;
    int32_t inner = v->channels / b->groups, group = b->groups == 1 ? 0 : o / (b->outputs / b->groups);
    int32_t left = x * b->stride[1] - b->padding[1], step = b->dilation[1];
    int64_t sum = 0;
    for (int ky = 0; ky < b->kernel[0]; ky++, weight += b->kernel[1] * inner) {
        int32_t row = y * b->stride[0] - b->padding[0] + ky * b->dilation[0];
        if (row < 0 || row >= v->rows) continue;
        if (b->groups == 1 && step == 1) { /* the channels of neighbouring places are side by side */
            int32_t from = left < 0 ? -left : 0;
            int32_t until = left + b->kernel[1] > v->columns ? v->columns - left : b->kernel[1];
            int32_t first = nbsnn_element(v, 0, row, left + from);
            if (from < until) sum += nbsnn_dot(ram, v, first, weight + from * inner, (until - from) * inner);
        } else for (int kx = 0; kx < b->kernel[1]; kx++) {
            int32_t column = left + kx * step;
            if (column >= 0 && column < v->columns)
                sum += nbsnn_dot(ram, v, nbsnn_element(v, group * inner, row, column), weight + kx * inner, inner);
        }
    }
    return sum;
}

/* acc of a branch for one neuron: its convolution, or a map of the places of that, or the source itself. */
static inline int64_t nbsnn_accumulate(const uint8_t *ram, const nbsnn_branch *b, const int16_t *weight, int o, int y, int x)
{
    int64_t sum = 0;
    if (b->bits == NBSNN_SKIP) return nbsnn_get(ram, &b->source, nbsnn_element(&b->source, o, y, x));
    if (!b->after) return nbsnn_convolve(ram, b, weight, o, y, x);
    const nbsnn_axis *down = &b->after[0], *across = &b->after[1];
    for (int i = 0; i < down->reads; i++)
        for (int j = 0; j < across->reads; j++) {
            int32_t row = nbsnn_place(down, y, i, b->places[0]), column = nbsnn_place(across, x, j, b->places[1]);
            int64_t factor = nbsnn_factor(down, y, i) * nbsnn_factor(across, x, j);
            if (row >= 0 && column >= 0) sum += factor * nbsnn_convolve(ram, b, weight, o, row, column);
        }
    return sum;
}

/* The count of a neuron. */
static inline int64_t nbsnn_count(const nbsnn_node *node, int T, const uint8_t *ram, const int16_t *row, int o, int y, int x)
{
    int32_t element = (o * node->result.rows + y) * node->result.columns + x;
    int64_t fixed = nbsnn_number(node->bias, node->bias_per_element ? element : o);
    int64_t membrane = INT64_C(1) << (node->fraction_bits - 1);
    for (const nbsnn_branch *b = node->branches; b < node->branches + node->branch_count; row += b->row, b++) {
        int64_t product = nbsnn_number(b->gain, o) * nbsnn_accumulate(ram, b, row, o, y, x);
        if (b->source.constant) fixed += nbsnn_shifted(product + (INT64_C(1) << (b->shift - 1)), b->shift);
        else membrane += product;
    }
    membrane += T * fixed;
    if (membrane < 0) return 0;
    membrane >>= node->fraction_bits;
    return membrane < node->levels ? membrane : node->levels;
}

/* A number of a head; volatile, so that each operation is rounded. */
static inline double nbsnn_logit(const nbsnn_node *head, const uint8_t *ram, const int16_t *row, int o, int y, int x)
{
    int32_t element = (o * head->result.rows + y) * head->result.columns + x;
    volatile double total = head->head_bias[head->bias_per_element ? element : o];
    for (const nbsnn_branch *b = head->branches; b < head->branches + head->branch_count; row += b->row, b++) {
        volatile double product = (double)nbsnn_accumulate(ram, b, row, o, y, x) * b->scale[o];
        total += product;
    }
    return total;
}

/* Units and heads: the weights of an output channel are unpacked once for all places. */
static inline void nbsnn_channels(const nbsnn_node *node, int32_t timesteps, uint8_t *ram, int16_t *row, double *numbers)
{
    const nbsnn_value *v = &node->result;
    for (int o = 0; o < v->channels; o++) {
        int16_t *at = row;
        for (const nbsnn_branch *b = node->branches; b < node->branches + node->branch_count; at += b->row, b++)
            if (b->bits != NBSNN_SKIP) nbsnn_unpack(b, o, at);
        for (int y = 0; y < v->rows; y++)
            for (int x = 0; x < v->columns; x++) {
                if (numbers) *numbers++ = nbsnn_logit(node, ram, row, o, y, x);
                else nbsnn_put(ram, v, nbsnn_element(v, o, y, x), nbsnn_count(node, timesteps, ram, row, o, y, x));
            }
    }
}

/* One element of a sum, maximum or minimum over places. */
static inline int64_t nbsnn_pooled(const nbsnn_node *node, const uint8_t *ram, int c, int y, int x)
{
    int64_t total = 0;
    int found = 0;
    const nbsnn_axis *down = &node->axes[0], *across = &node->axes[1];
    for (int i = 0; i < down->reads; i++)
        for (int j = 0; j < across->reads; j++) {
            int32_t row = nbsnn_place(down, y, i, node->source.rows), column = nbsnn_place(across, x, j, node->source.columns);
            if (row < 0 || column < 0) continue;
            int64_t v = nbsnn_get(ram, &node->source, nbsnn_element(&node->source, c, row, column));
            if (node->type == NBSNN_SUM) total += nbsnn_factor(down, y, i) * nbsnn_factor(across, x, j) * v;
            else if (!found || (node->type == NBSNN_MAX ? v > total : v < total)) total = v;
            found = 1;
        }
    return total;
}

static inline void nbsnn_places(const nbsnn_node *node, uint8_t *ram)
{
    int flat = node->type == NBSNN_FLATTEN;
    const nbsnn_value *v = flat ? &node->source : &node->result;
    for (int c = 0, i = 0; c < v->channels; c++)
        for (int y = 0; y < v->rows; y++)
            for (int x = 0; x < v->columns; x++, i++) {
                int32_t element = nbsnn_element(v, c, y, x);
                int64_t number = flat ? nbsnn_get(ram, v, element) : nbsnn_pooled(node, ram, c, y, x);
                nbsnn_put(ram, &node->result, flat ? i : element, number);
            }
}

/* The image [channels, rows, columns], of 8-bit pixels or of integers, to the network's memory. */
static inline void nbsnn_show(const nbsnn_network *net, const uint8_t *pixels, const int32_t *integers, uint8_t *ram)
{
    const nbsnn_value *v = &net->image;
    for (int c = 0, i = 0; c < v->channels; c++)
        for (int y = 0; y < v->rows; y++)
            for (int x = 0; x < v->columns; x++, i++) {
                int32_t number = pixels ? net->table[256 * c + pixels[i]] : integers[i];
                number = number < net->low ? net->low : number > net->high ? net->high : number;
                nbsnn_put(ram, v, nbsnn_element(v, c, y, x), number);
            }
}

/* Runs a network on 8-bit pixels or, if these are NULL, on integers; all outputs follow each other in `result`. */
static inline void nbsnn_run(
    const nbsnn_network *net, const uint8_t *pixels, const int32_t *integers, uint8_t *ram, int16_t *row, double *numbers,
    float *result)
{
    double *at = numbers;
    nbsnn_show(net, pixels, integers, ram);
    for (const nbsnn_node *node = net->nodes; node < net->nodes + net->node_count; node++) {
        if (node->type == NBSNN_UNIT) nbsnn_channels(node, net->timesteps, ram, row, NULL);
        else nbsnn_places(node, ram);
    }
    for (const nbsnn_node *head = net->heads; head < net->heads + net->head_count; head++) {
        nbsnn_channels(head, net->timesteps, ram, row, at);
        at += head->result.channels * head->result.rows * head->result.columns;
    }
    for (const nbsnn_output *out = net->outputs; out < net->outputs + net->output_count; out++)
        for (int i = 0; i < out->size; i++) {
            volatile double total = out->shift ? out->shift[i] : 0.0;
            for (const nbsnn_part *part = out->parts; part < out->parts + out->part_count; part++) {
                int32_t index = part->index ? part->index[i] : i;
                double gain = part->gain ? part->gain[i] : 1.0;
                volatile double chosen = index < 0 ? 0.0 : numbers[part->first + (uint32_t)index] * gain;
                total += chosen;
            }
            *result++ = (float)total;
        }
}

#endif
